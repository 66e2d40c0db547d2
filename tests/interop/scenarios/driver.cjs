// Lets a test steer mqtt.js: one JSON command a line comes in, answers and what the clients saw go out the same way.
const mqtt = require("mqtt");
const readline = require("node:readline");

const clients = new Map();
const tell = (what) => process.stdout.write(JSON.stringify(what) + "\n");
const bytes = (value) => (value === undefined ? undefined : Buffer.from(value, "base64"));
const text = (value) => (value === undefined ? undefined : Buffer.from(value).toString("base64"));

function incoming(properties) {
  if (!properties) return {};
  return { ...properties, correlationData: text(properties.correlationData) };
}

function outgoing(properties) {
  if (!properties) return undefined;
  return { ...properties, correlationData: bytes(properties.correlationData) };
}

function connect(name, { url, options }) {
  return new Promise((resolve) => {
    if (options.will) {
      options.will.properties = outgoing(options.will.properties);
      options.will.payload = bytes(options.will.payload);
    }
    const client = mqtt.connect(url, { ...options, reconnectPeriod: 0, resubscribe: false });
    clients.set(name, client);
    client.on("packetreceive", (packet) => {
      const { cmd, topic, qos, retain, dup, returnCode, reasonCode, sessionPresent } = packet;
      const properties = incoming(packet.properties);
      if (cmd === "publish") tell({ client: name, cmd, topic, qos, retain, dup, payload: text(packet.payload), properties });
      else if (cmd === "connack") {
        client.stream.setNoDelay?.(true);
        tell({ client: name, cmd, code: reasonCode ?? returnCode, sessionPresent, properties });
        resolve();
      } else if (cmd === "disconnect") tell({ client: name, cmd, code: reasonCode, properties });
    });
    client.on("error", () => {});
    client.on("close", () => {
      tell({ client: name, cmd: "close" });
      resolve();
    });
  });
}

const commands = {
  connect: (name, given) => connect(name, given),
  subscribe: (name, { filters, properties }) =>
    new Promise((resolve) => {
      clients.get(name).subscribe(filters, properties ? { properties } : {}, (error, granted, packet) =>
        resolve(packet ? packet.granted : error ? null : granted.map((one) => one.qos)),
      );
    }),
  unsubscribe: (name, { filters }) =>
    new Promise((resolve) => {
      clients.get(name).unsubscribe(filters, {}, (error, packet) => resolve(packet?.granted ?? (error ? null : [])));
    }),
  publish: (name, { topic, payload, qos, retain, properties }) =>
    new Promise((resolve) => {
      const options = { qos, retain, properties: outgoing(properties) };
      clients.get(name).publish(topic, bytes(payload), options, (error, packet) =>
        resolve(qos === 0 ? [] : [error?.code ?? packet?.reasonCode ?? 0]),
      );
    }),
  end: (name, { reasonCode, properties }) =>
    new Promise((resolve) => clients.get(name).end(false, { reasonCode, properties }, () => resolve([]))),
  drop: async (name) => {
    clients.get(name).stream.destroy();
    return [];
  },
};

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const { id, command, client, ...given } = JSON.parse(line);
  try {
    tell({ id, result: (await commands[command](client, given)) ?? null });
  } catch (error) {
    tell({ id, error: String(error) });
  }
});
