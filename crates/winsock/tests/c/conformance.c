/*
 * The contract of the three control codes, one row per rule and per error.
 * Compiles with Microsoft's headers as well: on Windows it asks the original.
 *
 *     conformance [first port of ten free ones]
 *
 * Rows marked OURS are where the pages are silent and the answer is a decision.
 */
#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <ws2tcpip.h>
#include <mstcpip.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"

enum socket_kind { TCP4, UDP4, TCP6, UDP6, RAW, NO_SOCKET, HUGE_SOCKET, BOUND, NON_BLOCKING, KINDS };
enum input { GOOD, NOTHING, ODD };

#define ANY 0xffffffffu
#define UNTOUCHED 0x5a5a5a5au
#define OURS 1

struct row {
	const char *rule;
	enum socket_kind kind;
	DWORD code;
	enum input input;
	DWORD input_size;
	DWORD output_size; /* 0: NULL */
	int start, count; /* of an ACQUIRE */
	ULONG64 token; /* of the others: 1 stands for a good one, 2 for one released before */
	int error;
	DWORD bytes; /* ANY: not looked at */
	int ours;
};

#define A SIO_ACQUIRE_PORT_RESERVATION
#define R SIO_RELEASE_PORT_RESERVATION
#define S SIO_ASSOCIATE_PORT_RESERVATION

static int base = 61400;

static const struct row rows[] = {
	/* ACQUIRE */
	{ "any block, TCP over IPv4", TCP4, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0 },
	{ "any block, UDP over IPv4", UDP4, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0 },
	{ "any block, TCP over IPv6", TCP6, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0 },
	{ "any block, UDP over IPv6", UDP6, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0 },
	{ "any block, non-blocking socket", NON_BLOCKING, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0 },
	{ "a specific block", TCP4, A, GOOD, 4, 16, -1, 10, 0, 0, 16, 0 },
	{ "one port", UDP4, A, GOOD, 4, 16, -1, 1, 0, 0, 16, 0 },
	{ "buffers larger than needed", TCP4, A, GOOD, 64, 64, 0, 1, 0, 0, 16, 0 },
	{ "output one byte too small", TCP4, A, GOOD, 4, 15, 0, 1, 0, WSAEINVAL, 0, 0 },
	{ "no output", TCP4, A, GOOD, 4, 0, 0, 1, 0, WSAEINVAL, 0, 0 },
	{ "input one byte too small", TCP4, A, GOOD, 3, 16, 0, 1, 0, WSAEINVAL, ANY, OURS },
	{ "no input, with a size", TCP4, A, NOTHING, 4, 16, 0, 1, 0, WSAEFAULT, ANY, 0 },
	{ "count 0", TCP4, A, GOOD, 4, 16, 0, 0, 0, WSAEINVAL, ANY, OURS },
	{ "specific, count 0", TCP4, A, GOOD, 4, 16, -1, 0, 0, WSAEINVAL, ANY, OURS },
	{ "past 65535", TCP4, A, GOOD, 4, 16, 65530, 7, 0, WSAEINVAL, ANY, OURS },
	{ "more than there are", TCP4, A, GOOD, 4, 16, 0, 65535, 0, WSAENOBUFS, ANY, OURS },
	{ "raw socket", RAW, A, GOOD, 4, 16, 0, 1, 0, WSAEOPNOTSUPP, ANY, 0 },
	{ "no socket", NO_SOCKET, A, GOOD, 4, 16, 0, 1, 0, WSAENOTSOCK, ANY, 0 },
	{ "no socket, and wrong sizes", NO_SOCKET, A, GOOD, 0, 0, 0, 1, 0, WSAENOTSOCK, ANY, 0 },
	{ "a number no socket has", HUGE_SOCKET, A, GOOD, 4, 16, 0, 1, 0, WSAENOTSOCK, ANY, 0 },
	{ "on a bound socket", BOUND, A, GOOD, 4, 16, 0, 1, 0, 0, 16, 0 },
	{ "input at an odd address", TCP4, A, ODD, 4, 16, 0, 2, 0, 0, 16, 0 },
	/* RELEASE */
	{ "release", TCP4, R, GOOD, 8, 0, 0, 0, 1, 0, 0, 0 },
	{ "release, larger input", TCP4, R, GOOD, 64, 0, 0, 0, 1, 0, 0, 0 },
	{ "release, input at an odd address", TCP4, R, ODD, 8, 0, 0, 0, 1, 0, 0, 0 },
	{ "release twice", TCP4, R, GOOD, 8, 0, 0, 0, 2, WSAEINVAL, ANY, OURS },
	{ "release 0", TCP4, R, GOOD, 8, 0, 0, 0, 0, WSAEINVAL, ANY, OURS },
	{ "release an invented token", TCP4, R, GOOD, 8, 0, 0, 0, 0x0123456789abcdefull, WSAEINVAL, ANY, OURS },
	{ "release of the other transport", UDP4, R, GOOD, 8, 0, 0, 0, 1, WSAEINVAL, ANY, OURS },
	{ "release, input too small", TCP4, R, GOOD, 7, 0, 0, 0, 1, WSAEINVAL, ANY, OURS },
	{ "release, with an output buffer", TCP4, R, GOOD, 8, 16, 0, 0, 1, WSAEINVAL, ANY, 0 },
	{ "release, no input", TCP4, R, NOTHING, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0 },
	{ "release, no socket", NO_SOCKET, R, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0 },
	{ "release, raw socket", RAW, R, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, 0 },
	{ "release from any socket of the process", BOUND, R, GOOD, 8, 0, 0, 0, 1, 0, 0, 0 },
	/* ASSOCIATE */
	{ "associate", TCP4, S, GOOD, 8, 0, 0, 0, 1, 0, 0, 0 },
	{ "associate over IPv6", TCP6, S, GOOD, 8, 0, 0, 0, 1, 0, 0, 0 },
	{ "associate, non-blocking socket", NON_BLOCKING, S, GOOD, 8, 0, 0, 0, 1, 0, 0, 0 },
	{ "associate a released token", TCP4, S, GOOD, 8, 0, 0, 0, 2, WSAEINVAL, ANY, OURS },
	{ "associate 0", TCP4, S, GOOD, 8, 0, 0, 0, 0, WSAEINVAL, ANY, OURS },
	{ "associate of the other transport", UDP4, S, GOOD, 8, 0, 0, 0, 1, WSAEINVAL, ANY, OURS },
	{ "associate after bind", BOUND, S, GOOD, 8, 0, 0, 0, 1, WSAEINVAL, ANY, OURS },
	{ "associate, input too small", TCP4, S, GOOD, 7, 0, 0, 0, 1, WSAEINVAL, ANY, OURS },
	{ "associate, with an output buffer", TCP4, S, GOOD, 8, 16, 0, 0, 1, WSAEINVAL, ANY, 0 },
	{ "associate, no input", TCP4, S, NOTHING, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0 },
	{ "associate, no socket", NO_SOCKET, S, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0 },
	{ "associate, raw socket", RAW, S, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, 0 },
	/* others */
	{ "same low word, with the O bit", TCP4, R | 0x40000000u, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, OURS },
	{ "the next vendor code", TCP4, A + 3, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, OURS },
	{ "unknown code, no socket", NO_SOCKET, A + 3, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0 },
};

static SOCKET make(enum socket_kind kind)
{
	u_long yes = 1;
	SOCKET s;
	switch (kind) {
	case UDP4:
		return socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);
	case TCP6:
		return socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP);
	case UDP6:
		return socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDP);
	case RAW:
		return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	case NO_SOCKET:
		return INVALID_SOCKET;
	case HUGE_SOCKET:
		return (SOCKET)0x7ffffff0;
	default:
		break;
	}
	s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	if (kind == BOUND)
		CHECK(bind_port(s, 0) == 0);
	if (kind == NON_BLOCKING)
		CHECK(ioctlsocket(s, FIONBIO, &yes) == 0);
	return s;
}

static void run(const struct row *row)
{
	SOCKET keeper = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	SOCKET s = make(row->kind);
	INET_PORT_RESERVATION_INSTANCE held, *out = NULL;
	unsigned char input[80] = { 0 }, output[80];
	void *in = input;
	DWORD bytes = UNTOUCHED;
	int result, error;

	if (row->kind == RAW && s == INVALID_SOCKET) {
		printf("%s: skipped, no right to make a raw socket\n", row->rule);
		closesocket(keeper);
		return;
	}
	if (row->input == ODD)
		in = input + 1;
	if (row->code == A) {
		INET_PORT_RANGE range;
		range.StartPort = htons((USHORT)(row->start < 0 ? base : row->start));
		range.NumberOfPorts = (USHORT)row->count;
		memcpy(in, &range, sizeof(range));
	} else {
		ULONG64 token = row->token;
		if (token == 1 || token == 2) {
			CHECK(acquire(keeper, 0, 2, &held) == 0);
			if (token == 2)
				CHECK(release(keeper, &held) == 0);
			memcpy(&token, &held.Token, sizeof(token));
		}
		memcpy(in, &token, sizeof(token));
	}
	memset(output, 0x5a, sizeof(output));
	if (row->input == NOTHING)
		in = NULL;
	WSASetLastError(0);
	result = WSAIoctl(s, row->code, in, row->input_size, row->output_size ? output : NULL, row->output_size, &bytes,
			  NULL, NULL);
	error = result == 0 ? 0 : WSAGetLastError();
	if (error != row->error || (result != 0 && result != SOCKET_ERROR)) {
		failures++;
		printf("%s%s: %d with error %d, not %d\n", row->rule, row->ours ? " (our decision)" : "", result, error,
		       row->error);
	} else if (row->bytes != ANY && bytes != row->bytes) {
		failures++;
		printf("%s: %u bytes returned, not %u\n", row->rule, (unsigned)bytes, (unsigned)row->bytes);
	}
	if (row->code == A && result == 0) {
		memcpy(&held, output, sizeof(held));
		out = &held;
		CHECK(out->NumberOfPorts == row->count);
		CHECK(START_OF(*out) != 0 && START_OF(*out) + row->count <= 65536);
		CHECK(row->start >= 0 || START_OF(*out) == base);
		CHECK(out->Token != INVALID_PORT_RESERVATION_TOKEN);
		CHECK(output[16] == 0x5a);
		CHECK(release(s, out) == 0);
	}
	if (row->code == A && result != 0)
		CHECK(output[0] == 0x5a && output[15] == 0x5a);
	if (s != INVALID_SOCKET && row->kind != HUGE_SOCKET)
		CHECK(closesocket(s) == 0);
	CHECK(closesocket(keeper) == 0);
}

/* Rules that take more than one call. */
static void sequences(void)
{
	INET_PORT_RESERVATION_INSTANCE one, two;
	SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP), other = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	SOCKET udp = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);
	int port;

	/* Reserved is reserved, and per transport. */
	CHECK(acquire(s, base, 4, &one) == 0);
	CHECK_ERROR(acquire(other, base + 3, 1, &two), WSAEADDRINUSE);
	CHECK_ERROR(acquire(s, base, 4, &two), WSAEADDRINUSE);
	CHECK(acquire(udp, base, 4, &two) == 0);
	CHECK(one.Token != two.Token);
	CHECK(release(udp, &two) == 0);
	/* A port of the block is drawn; a bound socket keeps it when the block ends. */
	CHECK(associate(other, &one) == 0);
	CHECK(bind_port(other, 0) == 0);
	port = port_of(other);
	CHECK(port >= base && port < base + 4);
	CHECK(release(s, &one) == 0);
	CHECK(port_of(other) == port);
	CHECK(listen(other, 1) == 0);
	CHECK(closesocket(other) == 0);
	/* Closing the socket it was acquired on ends it. */
	CHECK(acquire(s, base, 4, &one) == 0);
	CHECK(closesocket(s) == 0);
	other = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	CHECK_ERROR(associate(other, &one), WSAEINVAL);
	CHECK(acquire(other, base, 4, &two) == 0);
	CHECK(one.Token != two.Token);
	/* Outside the block. */
	CHECK(associate(other, &two) == 0);
	CHECK_ERROR(bind_port(other, base + 4), WSAEACCES);
	CHECK(bind_port(other, base + 2) == 0);
	CHECK(closesocket(other) == 0);
	/* Exhausted. */
	s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	CHECK(acquire(s, 0, 1, &one) == 0);
	CHECK(associate(s, &one) == 0 && bind_port(s, 0) == 0);
	other = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
	CHECK(associate(other, &one) == 0);
	CHECK_ERROR(bind_port(other, 0), WSAEADDRINUSE);
	closesocket(other);
	closesocket(s);
	closesocket(udp);
}

int main(int argc, char **argv)
{
	WSADATA data;
	DWORD bytes;
	INET_PORT_RESERVATION_INSTANCE instance;
	INET_PORT_RANGE range = { 0, 1 };
	size_t i;

	if (argc > 1)
		base = atoi(argv[1]);
	CHECK_ERROR(WSAIoctl(0, A, &range, 4, &instance, 16, &bytes, NULL, NULL), WSANOTINITIALISED);
	CHECK_ERROR(WSACleanup(), WSANOTINITIALISED);
	CHECK(WSAStartup(MAKEWORD(2, 2), NULL) == WSAEFAULT);
	CHECK(WSAStartup(MAKEWORD(0, 1), &data) == WSAVERNOTSUPPORTED);
	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	CHECK(data.wVersion == MAKEWORD(2, 2) && data.wHighVersion == MAKEWORD(2, 2));
	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	CHECK(WSACleanup() == 0);
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		run(&rows[i]);
	sequences();
	CHECK(WSACleanup() == 0);
	CHECK_ERROR(WSACleanup(), WSANOTINITIALISED);
	printf("%u rows, %d failures\n", (unsigned)(sizeof(rows) / sizeof(rows[0])), failures);
	return failures != 0;
}
