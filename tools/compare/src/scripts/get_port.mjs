// npm's get-port, used as its documentation says. It locks a port within this process for 15 to 30 seconds, and there
// is nothing to give back.
//
// Speaks the protocol of `allocator.rs`: `get N`, `hand`, `free`, `time ITERATIONS N`.

import readline from 'node:readline';
import getPort from 'get-port';

const pick = async count => {
	const ports = [];
	while (ports.length < count) {
		ports.push(await getPort());
	}

	return ports;
};

const answer = async (command, first, second) => {
	switch (command) {
		case 'get':
			return [process.pid, ...await pick(first)].join(' ');
		case 'time': {
			const begun = process.hrtime.bigint();
			for (let i = 0; i < first; i++) {
				await pick(second);
			}

			return process.hrtime.bigint() - begun;
		}

		default:
			return 'ok';
	}
};

console.log('ready');
for await (const line of readline.createInterface({input: process.stdin})) {
	const [command, ...numbers] = line.split(' ');
	try {
		console.log(String(await answer(command, ...numbers.map(Number))));
	} catch (error) {
		console.log(`none ${error}`);
	}
}
