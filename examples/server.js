// A server on a reserved port, in Node. Run it with: portkeep run -- node server.js
// Node cannot set socket options. So it gets the port from `portkeep run`, or a listening socket from its parent process.
const net = require('node:net');

const { PORT, LISTEN_FD } = process.env;
const server = net.createServer((connection) => connection.end('hello\n'));
server.listen(LISTEN_FD ? { fd: Number(LISTEN_FD) } : { host: '127.0.0.1', port: PORT }, () =>
  console.log('listening on port', server.address().port));
