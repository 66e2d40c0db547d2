// A page in a browser, which speaks MQTT over WebSocket: prints each message it gets as JSON until it is killed, or why it
// was not let in.
const mqtt = require("mqtt");

const [url, username, password, filter, unwanted] = process.argv.slice(2);
const client = mqtt.connect(url, { username, password, reconnectPeriod: 0 });
client.on("connect", async () => {
  await client.subscribeAsync(filter, { qos: 1 });
  if (unwanted) await client.publishAsync(unwanted, "ON", { qos: 1 });
  console.log(JSON.stringify(["subscribed"]));
});
client.on("message", (topic, payload, packet) => {
  console.log(JSON.stringify(["message", topic, payload.toString(), packet.retain]));
});
client.on("error", (error) => {
  console.log(JSON.stringify(["error", error.message]));
  client.end(true);
});
