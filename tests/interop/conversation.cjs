// mqtt.js talks to the broker on the port given, in the protocol version given, and prints what it saw as JSON.
const mqtt = require("mqtt");

const [port, version] = process.argv.slice(2, 4).map(Number);
// Optionally another way in: a URL, and the file of the authority that signed its certificate.
const [other, cafile] = process.argv.slice(4);
const options = { protocolVersion: version, protocolId: version === 3 ? "MQIsdp" : "MQTT", reconnectPeriod: 0 };
const url = other ?? `mqtt://127.0.0.1:${port}`;
if (cafile) options.ca = require("fs").readFileSync(cafile);
const seen = [];

async function main() {
  const subscriber = await mqtt.connectAsync(url, { ...options, clientId: "js-s" });
  const publisher = await mqtt.connectAsync(url, { ...options, clientId: "js-p" });
  const done = new Promise((resolve) => {
    subscriber.on("message", (topic, payload, packet) => {
      seen.push([topic, payload.toString(), packet.qos, packet.retain]);
      if (topic === "js/end") resolve();
    });
  });
  await publisher.publishAsync("js/retained", "kept", { qos: 1, retain: true });
  const granted = await subscriber.subscribeAsync("js/#", { qos: 2 });
  for (const qos of [0, 1, 2]) await publisher.publishAsync(`js/${qos}`, `m${qos}`, { qos });
  await publisher.publishAsync("js/end", "", { qos: 2 });
  await done;
  await subscriber.unsubscribeAsync("js/#");
  await publisher.publishAsync("js/after", "x", { qos: 1 });
  await publisher.publishAsync("js/retained", "", { qos: 1, retain: true });
  await Promise.all([publisher.endAsync(), subscriber.endAsync()]);
  console.log(JSON.stringify({ granted: granted.map((grant) => grant.qos), seen }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
