/*
 * The contract of port reservations: the three control codes, the calls around them, and the persistent calls, one row
 * for each rule, each size and each error. It also compiles with Microsoft's headers: on Windows it tests the original.
 *
 *     conformance [world [first port of ten free ones]]
 *     conformance list
 *
 * The world is the environment of the program, because not every row can be tested in every environment: "windows", or
 * on Linux one of those that the W_ words below describe. Each row that is tested prints "asked: rule", each row that
 * cannot be tested "left out: rule: why". In rows marked OURS the pages are silent, and the answer is a decision.
 */
#ifndef _WIN32
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* unshare */
#endif
#endif
#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <ws2tcpip.h>
#include <mstcpip.h>
#include <iphlpapi.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <windows.h>
#define popen _popen
#define pclose _pclose
#define HERE W_WINDOWS
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>
#define HERE W_AGENT
#endif
#include "check.h"

/* Worlds. */
#define W_WINDOWS 1 /* the original */
#define W_AGENT 2 /* kernel enforcement and agent, as root */
#define W_NO_AGENT 4 /* kernel enforcement, as root */
#define W_STOPPED 8 /* the agent is stopped, as root */
#define W_USER 16 /* kernel enforcement and agent, as a user without any right, with a quota of 1024 ports */
#define W_EACCES 32 /* no agent, as root; outsiders get EACCES */
#define W_HELD 64 /* no kernel enforcement, as root */
#define W_KERNEL (W_AGENT | W_NO_AGENT | W_USER | W_EACCES)
#define W_ROOT (W_AGENT | W_NO_AGENT | W_EACCES)
#define W_ALL (W_WINDOWS | W_KERNEL | W_HELD)

static const struct {
	const char *name;
	int world;
} worlds[] = { { "windows", W_WINDOWS }, { "agent", W_AGENT }, { "no-agent", W_NO_AGENT }, { "stopped", W_STOPPED },
	       { "user", W_USER }, { "eacces", W_EACCES }, { "held", W_HELD } };
static int world = HERE;
static const char *self;
static int base = 61400;

enum socket_kind {
	TCP4, UDP4, TCP6, UDP6, BOUND, NON_BLOCKING, NO_SOCKET, HUGE_SOCKET, CLOSED, PIPE,
	RAW, PING, MPTCP, UDP_LITE, SCTP, LOCAL
};
enum input { GOOD, NOTHING, ODD, BAD };
/* Errors in the outputs. */
enum how { AS_IT_SHOULD_BE, NO_OUTPUT, BAD_OUTPUT, NO_RETURNED, BAD_RETURNED };

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
	int start, count; /* of an ACQUIRE; -1 stands for `base` */
	ULONG64 token; /* of the others: 1 stands for a good one, 2 for one released before */
	int error;
	DWORD bytes; /* ANY: not looked at */
	int ours;
	enum how how;
	int worlds;
};

#define ROW(...) { __VA_ARGS__, AS_IT_SHOULD_BE, W_ALL }
#define WHERE(worlds, ...) { __VA_ARGS__, AS_IT_SHOULD_BE, worlds }
#define WITH(how, ...) { __VA_ARGS__, how, W_ALL }
#define A SIO_ACQUIRE_PORT_RESERVATION
#define R SIO_RELEASE_PORT_RESERVATION
#define S SIO_ASSOCIATE_PORT_RESERVATION

static const struct row rows[] = {
	/* ACQUIRE */
	ROW("any block, TCP over IPv4", TCP4, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0),
	ROW("any block, UDP over IPv4", UDP4, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0),
	ROW("any block, TCP over IPv6", TCP6, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0),
	ROW("any block, UDP over IPv6", UDP6, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0),
	ROW("any block, non-blocking socket", NON_BLOCKING, A, GOOD, 4, 16, 0, 4, 0, 0, 16, 0),
	ROW("a specific block", TCP4, A, GOOD, 4, 16, -1, 10, 0, 0, 16, 0),
	ROW("one port", UDP4, A, GOOD, 4, 16, -1, 1, 0, 0, 16, 0),
	ROW("buffers larger than needed", TCP4, A, GOOD, 64, 64, 0, 1, 0, 0, 16, 0),
	ROW("output one byte too small", TCP4, A, GOOD, 4, 15, 0, 1, 0, WSAEINVAL, 0, 0),
	ROW("no output", TCP4, A, GOOD, 4, 0, 0, 1, 0, WSAEINVAL, 0, 0),
	ROW("input one byte too small", TCP4, A, GOOD, 3, 16, 0, 1, 0, WSAEINVAL, ANY, OURS),
	ROW("no input, with a size", TCP4, A, NOTHING, 4, 16, 0, 1, 0, WSAEFAULT, ANY, 0),
	ROW("count 0", TCP4, A, GOOD, 4, 16, 0, 0, 0, WSAEINVAL, ANY, OURS),
	ROW("specific, count 0", TCP4, A, GOOD, 4, 16, -1, 0, 0, WSAEINVAL, ANY, OURS),
	ROW("past 65535", TCP4, A, GOOD, 4, 16, 65530, 7, 0, WSAEINVAL, ANY, OURS),
	ROW("more than there are", TCP4, A, GOOD, 4, 16, 0, 65535, 0, WSAENOBUFS, ANY, OURS),
	ROW("raw socket", RAW, A, GOOD, 4, 16, 0, 1, 0, WSAEOPNOTSUPP, ANY, 0),
	ROW("no socket", NO_SOCKET, A, GOOD, 4, 16, 0, 1, 0, WSAENOTSOCK, ANY, 0),
	ROW("no socket, and wrong sizes", NO_SOCKET, A, GOOD, 0, 0, 0, 1, 0, WSAENOTSOCK, ANY, 0),
	ROW("a number no socket has", HUGE_SOCKET, A, GOOD, 4, 16, 0, 1, 0, WSAENOTSOCK, ANY, 0),
	ROW("on a bound socket", BOUND, A, GOOD, 4, 16, 0, 1, 0, 0, 16, 0),
	ROW("input at an odd address", TCP4, A, ODD, 4, 16, 0, 2, 0, 0, 16, 0),
	/* RELEASE */
	ROW("release", TCP4, R, GOOD, 8, 0, 0, 0, 1, 0, 0, 0),
	ROW("release, larger input", TCP4, R, GOOD, 64, 0, 0, 0, 1, 0, 0, 0),
	ROW("release, input at an odd address", TCP4, R, ODD, 8, 0, 0, 0, 1, 0, 0, 0),
	ROW("release twice", TCP4, R, GOOD, 8, 0, 0, 0, 2, WSAEINVAL, ANY, OURS),
	ROW("release 0", TCP4, R, GOOD, 8, 0, 0, 0, 0, WSAEINVAL, ANY, OURS),
	ROW("release an invented token", TCP4, R, GOOD, 8, 0, 0, 0, 0x0123456789abcdefull, WSAEINVAL, ANY, OURS),
	ROW("release of the other transport", UDP4, R, GOOD, 8, 0, 0, 0, 1, WSAEINVAL, ANY, OURS),
	ROW("release, input too small", TCP4, R, GOOD, 7, 0, 0, 0, 1, WSAEINVAL, ANY, OURS),
	ROW("release, with an output buffer", TCP4, R, GOOD, 8, 16, 0, 0, 1, WSAEINVAL, ANY, 0),
	ROW("release, no input", TCP4, R, NOTHING, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0),
	ROW("release, no socket", NO_SOCKET, R, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
	ROW("release, raw socket", RAW, R, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, 0),
	ROW("release from any socket of the process", BOUND, R, GOOD, 8, 0, 0, 0, 1, 0, 0, 0),
	/* ASSOCIATE */
	ROW("associate", TCP4, S, GOOD, 8, 0, 0, 0, 1, 0, 0, 0),
	ROW("associate over IPv6", TCP6, S, GOOD, 8, 0, 0, 0, 1, 0, 0, 0),
	ROW("associate, non-blocking socket", NON_BLOCKING, S, GOOD, 8, 0, 0, 0, 1, 0, 0, 0),
	ROW("associate a released token", TCP4, S, GOOD, 8, 0, 0, 0, 2, WSAEINVAL, ANY, OURS),
	ROW("associate 0", TCP4, S, GOOD, 8, 0, 0, 0, 0, WSAEINVAL, ANY, OURS),
	ROW("associate of the other transport", UDP4, S, GOOD, 8, 0, 0, 0, 1, WSAEINVAL, ANY, OURS),
	ROW("associate after bind", BOUND, S, GOOD, 8, 0, 0, 0, 1, WSAEINVAL, ANY, OURS),
	ROW("associate, input too small", TCP4, S, GOOD, 7, 0, 0, 0, 1, WSAEINVAL, ANY, OURS),
	ROW("associate, with an output buffer", TCP4, S, GOOD, 8, 16, 0, 0, 1, WSAEINVAL, ANY, 0),
	ROW("associate, no input", TCP4, S, NOTHING, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0),
	ROW("associate, no socket", NO_SOCKET, S, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
	ROW("associate, raw socket", RAW, S, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, 0),
	/* sizes and pointers, all of them */
	ROW("ACQUIRE, input of 0", TCP4, A, GOOD, 0, 16, 0, 1, 0, WSAEINVAL, ANY, OURS),
	ROW("ACQUIRE, no input and no size", TCP4, A, NOTHING, 0, 16, 0, 1, 0, WSAEINVAL, ANY, OURS),
	ROW("ACQUIRE, input just right", TCP4, A, GOOD, 4, 17, 0, 1, 0, 0, 16, 0),
	ROW("ACQUIRE, input one byte larger", TCP4, A, GOOD, 5, 16, 0, 1, 0, 0, 16, 0),
	ROW("ACQUIRE, input at no address", TCP4, A, BAD, 4, 16, 0, 1, 0, WSAEFAULT, ANY, 0),
	WITH(NO_OUTPUT, "ACQUIRE, no output, with a size", TCP4, A, GOOD, 4, 16, 0, 1, 0, WSAEFAULT, ANY, 0),
	WITH(BAD_OUTPUT, "ACQUIRE, output at no address", TCP4, A, GOOD, 4, 16, 0, 1, 0, WSAEFAULT, ANY, 0),
	WITH(NO_RETURNED, "ACQUIRE, nowhere to return bytes", TCP4, A, GOOD, 4, 16, 0, 1, 0, WSAEFAULT, ANY, 0),
	WITH(BAD_RETURNED, "ACQUIRE, bytes returned to no address", TCP4, A, GOOD, 4, 16, 0, 1, 0, WSAEFAULT, ANY, 0),
	ROW("RELEASE, input of 0", TCP4, R, GOOD, 0, 0, 0, 0, 1, WSAEINVAL, ANY, OURS),
	ROW("RELEASE, input one byte larger", TCP4, R, GOOD, 9, 0, 0, 0, 1, 0, 0, 0),
	ROW("RELEASE, output of one byte", TCP4, R, GOOD, 8, 1, 0, 0, 1, WSAEINVAL, ANY, 0),
	ROW("RELEASE, input at no address", TCP4, R, BAD, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0),
	WITH(BAD_OUTPUT, "RELEASE, an output that is not used", TCP4, R, GOOD, 8, 0, 0, 0, 1, 0, 0, OURS),
	WITH(NO_RETURNED, "RELEASE, nowhere to return bytes", TCP4, R, GOOD, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0),
	WITH(BAD_RETURNED, "RELEASE, bytes returned to no address", TCP4, R, GOOD, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0),
	ROW("ASSOCIATE, input of 0", TCP4, S, GOOD, 0, 0, 0, 0, 1, WSAEINVAL, ANY, OURS),
	ROW("ASSOCIATE, input one byte larger", TCP4, S, GOOD, 9, 0, 0, 0, 1, 0, 0, 0),
	ROW("ASSOCIATE, output of one byte", TCP4, S, GOOD, 8, 1, 0, 0, 1, WSAEINVAL, ANY, 0),
	ROW("ASSOCIATE, input at no address", TCP4, S, BAD, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0),
	ROW("ASSOCIATE, input at an odd address", TCP4, S, ODD, 8, 0, 0, 0, 1, 0, 0, 0),
	WITH(BAD_OUTPUT, "ASSOCIATE, an output that is not used", TCP4, S, GOOD, 8, 0, 0, 0, 1, 0, 0, OURS),
	WITH(NO_RETURNED, "ASSOCIATE, nowhere to return bytes", TCP4, S, GOOD, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0),
	WITH(BAD_RETURNED, "ASSOCIATE, bytes returned to no address", TCP4, S, GOOD, 8, 0, 0, 0, 1, WSAEFAULT, ANY, 0),
	/* neither a TCP nor a UDP socket */
	ROW("ACQUIRE on what is no socket", PIPE, A, GOOD, 4, 16, 0, 1, 0, WSAENOTSOCK, ANY, 0),
	ROW("RELEASE on what is no socket", PIPE, R, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
	ROW("ASSOCIATE on what is no socket", PIPE, S, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
	ROW("ACQUIRE on a closed socket", CLOSED, A, GOOD, 4, 16, 0, 1, 0, WSAENOTSOCK, ANY, 0),
	ROW("RELEASE on a closed socket", CLOSED, R, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
	ROW("ASSOCIATE on a closed socket", CLOSED, S, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
	ROW("RELEASE on a number no socket has", HUGE_SOCKET, R, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
	ROW("ASSOCIATE on a number no socket has", HUGE_SOCKET, S, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
#ifndef _WIN32
	ROW("ACQUIRE on a ping socket", PING, A, GOOD, 4, 16, 0, 1, 0, WSAEOPNOTSUPP, ANY, OURS),
	ROW("ACQUIRE on an MPTCP socket", MPTCP, A, GOOD, 4, 16, 0, 1, 0, WSAEOPNOTSUPP, ANY, OURS),
	ROW("ACQUIRE on a UDP-Lite socket", UDP_LITE, A, GOOD, 4, 16, 0, 1, 0, WSAEOPNOTSUPP, ANY, OURS),
	ROW("ACQUIRE on an SCTP socket", SCTP, A, GOOD, 4, 16, 0, 1, 0, WSAEOPNOTSUPP, ANY, OURS),
	ROW("ACQUIRE on a Unix socket", LOCAL, A, GOOD, 4, 16, 0, 1, 0, WSAEOPNOTSUPP, ANY, OURS),
	ROW("RELEASE on a Unix socket", LOCAL, R, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, OURS),
	ROW("ASSOCIATE on a Unix socket", LOCAL, S, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, OURS),
#endif
	/* blocks */
	ROW("up to the last port", UDP4, A, GOOD, 4, 16, 65535, 1, 0, 0, 16, 0),
	WHERE(W_NO_AGENT | W_EACCES, "no agent: a block outside the pool", TCP4, A, GOOD, 4, 16, 5000, 20, 0, WSAENETDOWN,
	   ANY, OURS),
	WHERE(W_NO_AGENT | W_EACCES, "no agent: a block half inside the pool", UDP4, A, GOOD, 4, 16, 60999, 2, 0,
	   WSAENETDOWN, ANY, OURS),
	WHERE(W_AGENT | W_USER | W_WINDOWS | W_HELD, "a block outside the pool, TCP", TCP4, A, GOOD, 4, 16, 5000, 20, 0, 0,
	   16, 0),
	WHERE(W_AGENT | W_USER | W_WINDOWS | W_HELD, "a block outside the pool, UDP", UDP6, A, GOOD, 4, 16, 5000, 20, 0, 0,
	   16, 0),
	WHERE(W_AGENT | W_USER | W_WINDOWS | W_HELD, "a block outside the pool, non-blocking socket", NON_BLOCKING, A, GOOD, 4,
	   16, 5000, 20, 0, 0, 16, 0),
	WHERE(W_AGENT | W_WINDOWS | W_HELD, "privileged ports", TCP4, A, GOOD, 4, 16, 600, 1, 0, 0, 16, 0),
	WHERE(W_USER, "privileged ports without the right to them", TCP4, A, GOOD, 4, 16, 600, 1, 0, WSAEACCES, ANY, OURS),
	WHERE(W_USER, "over the quota", TCP4, A, GOOD, 4, 16, 0, 1025, 0, WSAENOBUFS, ANY, OURS),
	/* others */
	ROW("same low word, with the O bit", TCP4, R | 0x40000000u, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, OURS),
	ROW("the next vendor code", TCP4, A + 3, GOOD, 8, 0, 0, 0, 1, WSAEOPNOTSUPP, ANY, OURS),
	ROW("the same numbers without the vendor", TCP4, 0x80000064u, GOOD, 4, 16, 0, 1, 1, WSAEOPNOTSUPP, ANY, OURS),
	ROW("unknown code, no socket", NO_SOCKET, A + 3, GOOD, 8, 0, 0, 0, 1, WSAENOTSOCK, ANY, 0),
	ROW("SIO_FLUSH", TCP4, SIO_FLUSH, GOOD, 0, 0, 0, 0, 0, 0, ANY, OURS),
	ROW("SIO_FLUSH, no socket", NO_SOCKET, SIO_FLUSH, GOOD, 0, 0, 0, 0, 0, WSAENOTSOCK, ANY, 0),
};

static void asked(const char *rule)
{
	printf("asked: %s\n", rule);
}

static void left_out(const char *rule, const char *why)
{
	printf("left out: %s: %s\n", rule, why);
}

static SOCKET tcp(void)
{
	return socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
}

static SOCKET udp(void)
{
	return socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);
}

static SOCKET make(enum socket_kind kind)
{
	u_long yes = 1;
	SOCKET s;
	switch (kind) {
	case UDP4:
		return udp();
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
#ifdef _WIN32
	case PIPE:
		return (SOCKET)CreateEventA(NULL, TRUE, FALSE, NULL);
#else
	case PIPE: {
		int ends[2];
		CHECK(pipe(ends) == 0);
		close(ends[1]);
		return (SOCKET)ends[0];
	}
	case PING:
		return socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	case MPTCP:
		return socket(AF_INET, SOCK_STREAM, 262);
	case UDP_LITE:
		return socket(AF_INET, SOCK_DGRAM, 136);
	case SCTP:
		return socket(AF_INET, SOCK_STREAM, 132);
	case LOCAL:
		return socket(AF_UNIX, SOCK_STREAM, 0);
#endif
	default:
		break;
	}
	s = tcp();
	if (kind == BOUND)
		CHECK(bind_port(s, 0) == 0);
	if (kind == NON_BLOCKING)
		CHECK(ioctlsocket(s, FIONBIO, &yes) == 0);
	return s;
}

static void unmake(enum socket_kind kind, SOCKET s)
{
	if (kind == PIPE) {
#ifdef _WIN32
		CloseHandle((HANDLE)s);
#else
		close((int)s);
#endif
	} else if (kind != NO_SOCKET && kind != HUGE_SOCKET && kind != CLOSED) {
		CHECK(closesocket(s) == 0);
	}
}

static void run(const struct row *row)
{
	SOCKET keeper = tcp(), s = make(row->kind);
	INET_PORT_RESERVATION_INSTANCE held, *out = NULL;
	unsigned char input[80] = { 0 }, output[80];
	void *in = input, *to = row->output_size ? output : NULL;
	DWORD bytes = UNTOUCHED, *returned = &bytes;
	int result, error, had_token = 0;

	if (s == INVALID_SOCKET && row->kind != NO_SOCKET) {
		left_out(row->rule, "no such socket can be made here");
		closesocket(keeper);
		return;
	}
	asked(row->rule);
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
			had_token = token == 1;
			if (token == 2)
				CHECK(release(keeper, &held) == 0);
			memcpy(&token, &held.Token, sizeof(token));
		}
		memcpy(in, &token, sizeof(token));
	}
	memset(output, 0x5a, sizeof(output));
	if (row->input == NOTHING || row->input == BAD)
		in = row->input == BAD ? (void *)8 : NULL;
	if (row->how == NO_OUTPUT || row->how == BAD_OUTPUT)
		to = row->how == BAD_OUTPUT ? (void *)8 : NULL;
	if (row->how == NO_RETURNED || row->how == BAD_RETURNED)
		returned = row->how == BAD_RETURNED ? (DWORD *)8 : NULL;
	if (row->kind == CLOSED)
		CHECK(closesocket(s) == 0);
	WSASetLastError(0);
	result = WSAIoctl(s, row->code, in, row->input_size, to, row->output_size, returned, NULL, NULL);
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
		CHECK(row->start == 0 || START_OF(*out) == (row->start < 0 ? base : row->start));
		CHECK(out->Token != INVALID_PORT_RESERVATION_TOKEN);
		CHECK(output[16] == 0x5a);
		CHECK(release(s, out) == 0);
	}
	if (row->code == A && result != 0)
		CHECK(output[0] == 0x5a && output[15] == 0x5a);
	/* A RELEASE that failed has released nothing. */
	if (row->code == R && had_token)
		CHECK((release(keeper, &held) == 0) == (result != 0));
	unmake(row->kind, s);
	CHECK(closesocket(keeper) == 0);
}

#include "conformance/calls.h"
#include "conformance/pending.h"
#include "conformance/persistent.h"

#define WORKS 1 /* requires persistent calls: left out while they fail with ERROR_NOT_SUPPORTED */

static const struct {
	const char *rule;
	void (*run)(void);
	int worlds;
	int needs;
} sequences[] = {
	{ "reserved is reserved", reserved_is_reserved, W_ALL, 0 },
	{ "TCP and UDP are apart", transports_are_apart, W_ALL, 0 },
	{ "IPv4 and IPv6 are together", families_are_together, W_ALL, 0 },
	{ "several reservations on one socket", several_on_one_socket, W_ALL, 0 },
	{ "bind to 0 draws from the block", bind_draws, W_ALL, 0 },
	{ "bind to a port of the block", bind_explicitly, W_ALL, 0 },
	{ "bind outside the block (OURS)", bind_outside, W_ALL, 0 },
	{ "bind to 0, block exhausted (OURS)", bind_exhausted, W_ALL, 0 },
	{ "ASSOCIATE twice (OURS)", associate_twice, W_ALL, 0 },
	{ "RELEASE while bound", released_while_bound, W_ALL, 0 },
	{ "closing the owner socket ends it", closed_is_over, W_ALL, 0 },
	{ "a duplicate of the owner socket keeps it", a_duplicate_keeps_it, W_KERNEL | W_WINDOWS, 0 },
	{ "RELEASE of a foreign process's token (OURS)", foreign_release, W_ALL, 0 },
	{ "ASSOCIATE with a foreign process's token (OURS)", foreign_associate, W_ALL, 0 },
	{ "an outsider's bind is WSAEADDRINUSE (OURS)", outsiders_get_eaddrinuse, W_AGENT | W_NO_AGENT | W_USER | W_HELD, 0 },
	{ "an outsider's bind is WSAEACCES", outsiders_get_eacces, W_EACCES | W_WINDOWS, 0 },
	{ "the same process binds without ASSOCIATE (OURS)", same_process_binds, W_KERNEL, 0 },
	{ "in use by a socket", in_use_by_a_socket, W_AGENT | W_USER | W_HELD | W_WINDOWS, 0 },
	{ "more reservations than a socket can own (OURS)", a_full_socket, W_KERNEL, 0 },
	{ "a completion routine may call (OURS)", a_routine_may_call, W_ALL, 0 },
	{ "an event that is none", bad_event, W_ALL, 0 },
#ifndef _WIN32
	{ "token of another network namespace (OURS)", token_of_another_namespace, W_ROOT, 0 },
	{ "no kernel enforcement: more ports than descriptors (OURS)", more_than_descriptors, W_HELD, 0 },
	{ "WSA_IO_PENDING", pending, W_STOPPED, 0 },
	{ "WSA_IO_INCOMPLETE", incomplete, W_STOPPED, 0 },
	{ "CancelIoEx is WSA_OPERATION_ABORTED", cancelled, W_STOPPED, 0 },
	{ "closesocket is WSA_OPERATION_ABORTED", closed_under_it, W_STOPPED, 0 },
	{ "SIO_FLUSH is WSA_OPERATION_ABORTED", flushed, W_STOPPED, 0 },
	{ "thread exit is WSA_OPERATION_ABORTED", thread_exit, W_STOPPED, 0 },
	{ "a blocking call can be cancelled", cancelled_while_blocking, W_STOPPED, 0 },
	{ "a blocking call is interrupted: WSAEINTR", interrupted, W_STOPPED, 0 },
#endif
	{ "persistent: start 0", p_start_0, W_ALL, 0 },
	{ "persistent: count 0", p_count_0, W_ALL, 0 },
	{ "persistent: past 65535", p_past_the_end, W_ALL, 0 },
	{ "persistent: nowhere to put the token (OURS)", p_no_token, W_ALL, 0 },
	{ "persistent: no administrator", p_no_right, W_USER, 0 },
	{ "persistent: parameters come before the right (OURS)", p_parameters_first, W_USER, 0 },
	{ "persistent: create, look up, delete", p_life, W_AGENT | W_WINDOWS, WORKS },
	{ "persistent: not found", p_not_found, W_AGENT | W_WINDOWS, WORKS },
	{ "persistent: overlap", p_overlap, W_AGENT | W_WINDOWS, WORKS },
	{ "persistent: a port in use", p_in_use, W_AGENT | W_WINDOWS, WORKS },
	{ "persistent: a runtime reservation in the way", p_runtime_in_the_way, W_AGENT | W_WINDOWS, WORKS },
	{ "persistent: consumed by any administrator", p_consumed, W_AGENT | W_WINDOWS, WORKS },
	{ "persistent: RELEASE (OURS)", p_not_released, W_AGENT | W_WINDOWS, WORKS },
	{ "persistent: ASSOCIATE without the right is WSAEACCES", p_not_elevated, W_AGENT, WORKS },
};

static int persistent_calls_work(void)
{
	return LookupPersistentTcpPortReservation(PORT(5300), 20, &token) != ERROR_NOT_SUPPORTED;
}

static void before_startup(void)
{
	INET_PORT_RESERVATION_INSTANCE instance;
	INET_PORT_RANGE range = { 0, 1 };
	WSADATA data;
	DWORD bytes;
	asked("before WSAStartup: WSANOTINITIALISED");
	CHECK_ERROR(WSAIoctl(0, A, &range, 4, &instance, 16, &bytes, NULL, NULL), WSANOTINITIALISED);
	CHECK_ERROR(WSACleanup(), WSANOTINITIALISED);
	CHECK(tcp() == INVALID_SOCKET && WSAGetLastError() == WSANOTINITIALISED);
	asked("WSAStartup counts, and knows its versions");
	CHECK(WSAStartup(MAKEWORD(2, 2), NULL) == WSAEFAULT);
	CHECK(WSAStartup(MAKEWORD(0, 1), &data) == WSAVERNOTSUPPORTED);
	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	CHECK(data.wVersion == MAKEWORD(2, 2) && data.wHighVersion == MAKEWORD(2, 2));
	CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
	CHECK(WSACleanup() == 0);
}

int main(int argc, char **argv)
{
	WSADATA data;
	size_t i;

	self = argv[0];
	if (argc == 2 && !strcmp(argv[1], "list")) {
		for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
			printf("%s\n", rows[i].rule);
		for (i = 0; i < sizeof(sequences) / sizeof(sequences[0]); i++)
			printf("%s\n", sequences[i].rule);
		return 0;
	}
	if (argc == 3 && (!strcmp(argv[1], "token") || !strcmp(argv[1], "user-token") || !strcmp(argv[1], "bind"))) {
		CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0);
		return be_another(argv[1], strtoull(argv[2], NULL, 10));
	}
	if (argc > 1) {
		world = 0;
		for (i = 0; i < sizeof(worlds) / sizeof(worlds[0]); i++)
			if (!strcmp(argv[1], worlds[i].name))
				world = worlds[i].world;
		if (!world) {
			printf("no such world: %s\n", argv[1]);
			return 2;
		}
	}
	if (argc > 2)
		base = atoi(argv[2]);
#ifndef _WIN32
	alarm(300); /* a call that waits for ever must not hang the tests */
#endif
	before_startup();
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (rows[i].worlds & world)
			run(&rows[i]);
	for (i = 0; i < sizeof(sequences) / sizeof(sequences[0]); i++) {
		if (!(sequences[i].worlds & world))
			continue;
		if (sequences[i].needs == WORKS && !persistent_calls_work()) {
			left_out(sequences[i].rule, "the persistent calls say ERROR_NOT_SUPPORTED");
			continue;
		}
		asked(sequences[i].rule);
		sequences[i].run();
	}
	CHECK(WSACleanup() == 0);
	CHECK_ERROR(WSACleanup(), WSANOTINITIALISED);
	printf("%d failures\n", failures);
	return failures != 0;
}
