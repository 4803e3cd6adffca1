// Node's net and tls, used as its documentation advises. Parameters and answer are JSON.
import net from 'node:net';
import tls from 'node:tls';
import fs from 'node:fs';

const parameters = JSON.parse(process.argv[2]);
const host = parameters.host ?? '127.0.0.1';
const secure = parameters.tls;
const pem = secure && fs.readFileSync(process.env.BENCHMARKS_CERTIFICATE);
const ca = secure && fs.readFileSync(process.env.BENCHMARKS_AUTHORITY);

const listen = (handler) => new Promise((resolve) => {
  const server = secure ? tls.createServer({ key: pem, cert: pem, noDelay: true }, handler)
    : net.createServer({ noDelay: true }, handler);
  server.listen({ port: 0, host, backlog: 4096 }, () => resolve(server.address().port));
});

const connect = (port) => new Promise((resolve, reject) => {
  const socket = secure ? tls.connect({ port, host, ca }, () => resolve(socket.setNoDelay(true)))
    : net.connect({ port, host, noDelay: true }, () => resolve(socket));
  socket.on('error', reject);
});

const echoing = () => listen((socket) => {
  socket.on('data', (data) => socket.write(data));
  socket.on('error', () => {});
});

const check = (right) => {
  if (!right) throw new Error('what arrived is not what was sent');
};

const send = (socket, chunk, count) => {
  let left = count;
  const pump = () => {
    while (left) {
      left -= 1;
      if (!socket.write(chunk)) return;
    }
  };
  socket.on('drain', pump);
  pump();
};

const receiving = (chunk, count, done) => listen((socket) => {
  let received = 0;
  socket.on('data', (data) => {
    check(data[0] === chunk[received % chunk.length]);
    received += data.length;
    check(data[data.length - 1] === chunk[(received - 1) % chunk.length]);
    if (received === chunk.length * count) done();
  });
});

const echo = (socket, message, rounds) => new Promise((resolve) => {
  const times = [];
  let left = rounds;
  let begun = performance.now();
  socket.on('data', (data) => {
    check(data.equals(message));
    const now = performance.now();
    times.push((now - begun) / 1000);
    begun = now;
    left -= 1;
    if (left) socket.write(message); else resolve(times);
  });
  socket.write(message);
});

const pattern = (size) => Buffer.from(Array.from({ length: size }, (_, index) => index % 251));

const scenarios = {
  async serve() {
    console.log(await echoing());
  },
  async transfer({ size, count }) {
    const chunk = pattern(size);
    let port;
    const done = new Promise((resolve) => { port = receiving(chunk, count, resolve); });
    const socket = await connect(await port);
    const begun = performance.now();
    send(socket, chunk, count);
    await done;
    return (performance.now() - begun) / 1000;
  },
  async echo({ size, connections, rounds }) {
    const port = await echoing();
    const sockets = [];
    for (let index = 0; index < connections; index += 1) sockets.push(await connect(port));
    const begun = performance.now();
    await Promise.all(sockets.map((socket) => echo(socket, pattern(size), rounds)));
    return (performance.now() - begun) / 1000;
  },
  async churn({ size, count }) {
    const port = await echoing();
    const message = pattern(size);
    const begun = performance.now();
    for (let index = 0; index < count; index += 1) {
      const socket = await connect(port);
      const closed = new Promise((resolve) => { socket.on('close', resolve); });
      await echo(socket, message, 1);
      socket.end();
      await closed;
    }
    return (performance.now() - begun) / 1000;
  },
  async latency({ chunk: chunkSize, size, rounds }) {
    const chunk = pattern(chunkSize);
    const sender = await connect(await receiving(chunk, Infinity, () => {}));
    const socket = await connect(await echoing());
    send(sender, chunk, Infinity);
    const times = await echo(socket, pattern(size), rounds);
    sender.removeAllListeners('drain');
    sender.destroy();
    return times;
  },
};

// The just-in-time compiler must be warmed up in this process, for as long as all other subjects are.
if (parameters.scenario !== 'serve') {
  const brief = (number) => number && Math.ceil(number / 50);
  const { count, rounds } = parameters;
  await scenarios[parameters.scenario]({ ...parameters, count: brief(count), rounds: brief(rounds) });
}
const result = await scenarios[parameters.scenario](parameters);
if (result !== undefined) {
  console.log(JSON.stringify(result));
  process.exit(0);
}
