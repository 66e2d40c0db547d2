// mqtt.js logs in by SCRAM-SHA-256 (RFC 7677): PORT USER PASSWORD. Prints what came of it as JSON.
const crypto = require("node:crypto");
const mqtt = require("mqtt");

const [port, user, password] = process.argv.slice(2);
const method = "SCRAM-SHA-256";
const nonce = crypto.randomBytes(12).toString("hex");
const bare = `n=${user},r=${nonce}`;
const hmac = (key, text) => crypto.createHmac("sha256", key).update(text).digest();

const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, {
  clientId: "js-scram",
  protocolVersion: 5,
  reconnectPeriod: 0,
  properties: { authenticationMethod: method, authenticationData: Buffer.from(`n,,${bare}`) },
});
let expected;

client.handleAuth = (packet, answer) => {
  const serverFirst = packet.properties.authenticationData.toString();
  const [, serverNonce, salt, iterations] = /^r=([^,]*),s=([^,]*),i=([0-9]+)$/.exec(serverFirst);
  const salted = crypto.pbkdf2Sync(password, Buffer.from(salt, "base64"), Number(iterations), 32, "sha256");
  const clientKey = hmac(salted, "Client Key");
  const withoutProof = `c=biws,r=${serverNonce}`;
  const message = `${bare},${serverFirst},${withoutProof}`;
  const signature = hmac(crypto.createHash("sha256").update(clientKey).digest(), message);
  const proof = Buffer.from(clientKey.map((byte, place) => byte ^ signature[place])).toString("base64");
  expected = `v=${hmac(hmac(salted, "Server Key"), message).toString("base64")}`;
  const properties = { authenticationMethod: method, authenticationData: Buffer.from(`${withoutProof},p=${proof}`) };
  answer(null, { cmd: "auth", reasonCode: 24, properties });
};

function tell(result) {
  console.log(JSON.stringify(result));
  client.end(true);
}
client.on("connect", (connack) => {
  tell({ code: connack.reasonCode, signed: connack.properties.authenticationData.toString() === expected });
});
client.on("error", (error) => tell({ code: error.code }));
