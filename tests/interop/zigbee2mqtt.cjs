// Does with its broker what Zigbee2MQTT does, by the settings given as JSON (the `mqtt:` section of its configuration.yaml),
// and prints a line for each thing that happens. Runs until it is killed.
const mqtt = require("mqtt");

const { server, base_topic: base, user, password, version, keepalive } = JSON.parse(process.argv[2]);
const state = (text) => JSON.stringify({ state: text });
const client = mqtt.connect(server, {
  username: user,
  password,
  protocolVersion: Number(version),
  keepalive: Number(keepalive),
  will: { topic: `${base}/bridge/state`, payload: Buffer.from(state("offline")), retain: true, qos: 1 },
});

client.on("connect", async () => {
  await client.publishAsync(`${base}/bridge/state`, state("online"), { retain: true, qos: 0 });
  await client.subscribeAsync([`${base}/#`, "homeassistant/status"]);
  await client.publishAsync(`${base}/lamp/availability`, state("online"), { retain: true, qos: 1 });
  for (const part of ["light", "sensor", "update"]) {
    const config = { name: part, state_topic: `${base}/lamp`, device: { identifiers: ["zigbee2mqtt_0x01"] } };
    await client.publishAsync(`homeassistant/${part}/0x01/${part}/config`, JSON.stringify(config), { retain: true, qos: 1 });
  }
  // `retention` of a device, which version 5 alone can say
  const properties = Number(version) === 5 ? { messageExpiryInterval: 3600 } : undefined;
  await client.publishAsync(`${base}/lamp/kept`, "ON", { retain: true, qos: 1, properties });
  console.log("connected");
});

client.on("message", async (topic, payload) => {
  if (topic === `${base}/lamp/set`) {
    await client.publishAsync(`${base}/lamp`, payload.toString(), { qos: 0 });
  } else if (topic === "homeassistant/status") {
    console.log(`homeassistant ${payload}`);
  }
});
client.on("error", (error) => console.log(`error ${error.message}`));
