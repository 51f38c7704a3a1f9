/* A server on a reserved port, in C (and C++). Build it with: cc -o server server.c $(pkg-config --cflags portkeep) */
#include <netinet/in.h>
#include <portkeep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

int main(void)
{
	struct portkeep_acquire request;
	struct portkeep_grant granted;
	struct sockaddr_in address;
	socklen_t size = sizeof address;

	memset(&request, 0, sizeof request); /* start 0: the system chooses */
	request.count = 2;

	/* The reservation lives as long as this socket. Its type is the transport. */
	int owner = socket(AF_INET, SOCK_STREAM, 0);
	check(owner, "socket");
	check(portkeep_reserve(owner, &request, &granted, 10000), "reserving ports");

	/* An associated socket that binds to port 0 gets a free port of the block. */
	int server = socket(AF_INET, SOCK_STREAM, 0);
	memset(&address, 0, sizeof address);
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(setsockopt(server, SOL_PORTKEEP, PORTKEEP_ASSOCIATE, &granted.token, sizeof granted.token), "associate");
	check(bind(server, (struct sockaddr *)&address, sizeof address), "bind");
	check(listen(server, 16), "listen");
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
