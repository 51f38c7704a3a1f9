/* The common part of the C tests: say what went wrong and go on. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>

static int failures;

#define CHECK(what)                                                               \
	do {                                                                      \
		if (!(what)) {                                                    \
			failures++;                                               \
			printf("%s:%d: not so: %s (last error %d)\n", __FILE__,   \
			       __LINE__, #what, WSAGetLastError());               \
		}                                                                 \
	} while (0)

#define CHECK_ERROR(call, code)                                                   \
	do {                                                                      \
		WSASetLastError(0);                                               \
		int got_ = (call) == 0 ? 0 : WSAGetLastError();                   \
		if (got_ != (int)(code)) {                                             \
			failures++;                                               \
			printf("%s:%d: %s gives %d, not %d\n", __FILE__, __LINE__, \
			       #call, got_, (int)(code));                              \
		}                                                                 \
	} while (0)

static __attribute__((unused)) int acquire(SOCKET s, int start, int count, INET_PORT_RESERVATION_INSTANCE *out)
{
	INET_PORT_RANGE range;
	DWORD bytes = 0;
	range.StartPort = htons((USHORT)start);
	range.NumberOfPorts = (USHORT)count;
	return WSAIoctl(s, SIO_ACQUIRE_PORT_RESERVATION, &range, sizeof(range), out, sizeof(*out), &bytes, NULL, NULL);
}

static __attribute__((unused)) int associate(SOCKET s, INET_PORT_RESERVATION_INSTANCE *instance)
{
	DWORD bytes = 0;
	return WSAIoctl(s, SIO_ASSOCIATE_PORT_RESERVATION, &instance->Token, sizeof(ULONG64), NULL, 0, &bytes, NULL, NULL);
}

static __attribute__((unused)) int release(SOCKET s, INET_PORT_RESERVATION_INSTANCE *instance)
{
	DWORD bytes = 0;
	return WSAIoctl(s, SIO_RELEASE_PORT_RESERVATION, &instance->Token, sizeof(ULONG64), NULL, 0, &bytes, NULL, NULL);
}

static __attribute__((unused)) int bind_port(SOCKET s, int port)
{
	struct sockaddr_in name = { 0 };
	name.sin_family = AF_INET;
	name.sin_port = htons((USHORT)port);
	return bind(s, (struct sockaddr *)&name, sizeof(name));
}

static __attribute__((unused)) int port_of(SOCKET s)
{
	struct sockaddr_in name = { 0 };
	int length = sizeof(name);
	return getsockname(s, (struct sockaddr *)&name, &length) == 0 ? ntohs(name.sin_port) : -1;
}

#define START_OF(instance) ntohs((instance).StartPort)

#endif
