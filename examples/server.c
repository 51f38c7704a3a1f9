/* A server on a reserved port, in C. Build it with: cc -o server server.c */
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SOL_PORTKEEP = 0x504b, ACQUIRE = 100, ASSOCIATE = 102, GRANTED = 201 };
enum { PENDING = 1 };

/* Ports are in host byte order. */
struct acquire {
	uint16_t start, count; /* start 0: the system chooses */
	uint32_t flags;
};
struct grant {
	uint64_t token;
	uint16_t start, count;
	uint8_t transports, state;
	uint16_t error;
};

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

int main(void)
{
	struct acquire request = { .start = 0, .count = 2 };
	struct grant grant;
	socklen_t size = sizeof grant;

	/* The reservation lives as long as this socket. Its type is the transport. */
	int owner = socket(AF_INET, SOCK_STREAM, 0);
	check(owner, "socket");
	/* EINPROGRESS: particular ports outside the pool wait for the agent. */
	if (setsockopt(owner, SOL_PORTKEEP, ACQUIRE, &request, sizeof request) && errno != EINPROGRESS)
		check(-1, "acquire");
	for (int tries = 0; tries < 10000; tries++) {
		check(getsockopt(owner, SOL_PORTKEEP, GRANTED, &grant, &size), "granted");
		if (grant.state != PENDING)
			break;
		usleep(1000);
	}
	if (grant.state == PENDING) {
		fprintf(stderr, "the agent does not answer\n");
		return 1; /* closing the owner socket cancels the request */
	}
	if (grant.error) {
		errno = grant.error;
		check(-1, "acquire");
	}

	/* An associated socket that binds to port 0 gets a free port of the block. */
	int server = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	check(setsockopt(server, SOL_PORTKEEP, ASSOCIATE, &grant.token, sizeof grant.token), "associate");
	check(bind(server, (struct sockaddr *)&address, sizeof address), "bind");
	check(listen(server, 16), "listen");
	size = sizeof address;
	check(getsockname(server, (struct sockaddr *)&address, &size), "getsockname");
	printf("listening on port %d\n", ntohs(address.sin_port));
	fflush(stdout);

	for (;;) {
		int connection = accept(server, NULL, NULL);
		check(connection, "accept");
		check(write(connection, "hello\n", 6), "write");
		close(connection);
	}
}
