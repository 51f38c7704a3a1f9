/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Portkeep: port reservations that the Linux kernel enforces, for C and C++.
 *
 *   #include <portkeep.h>                     cc program.c $(pkg-config --cflags portkeep)
 *
 *   int owner = socket(AF_INET, SOCK_STREAM, 0);
 *   struct portkeep_acquire request = { 0, 2 };   (two TCP ports in a row)
 *   struct portkeep_grant granted;
 *   if (portkeep_reserve(owner, &request, &granted, 10000))
 *           perror("reserving ports");
 *   (bind granted.start, granted.start + 1, as always)
 *
 * There is no library: requests are socket options at the level SOL_PORTKEEP.
 * Every port is in HOST byte order.
 *
 * The owner socket. It is the socket of ACQUIRE. Its type chooses the
 * transport: SOCK_STREAM reserves TCP ports, SOCK_DGRAM UDP ports, both for
 * IPv4 and IPv6. The reservation ends when the last descriptor of the socket is
 * closed, however the process ends. Keep it open. It may be bound itself. One
 * socket can own 128 reservations.
 *
 * The calls
 *
 *   setsockopt(owner, SOL_PORTKEEP, PORTKEEP_ACQUIRE, &request, sizeof request)
 *   getsockopt(owner, SOL_PORTKEEP, PORTKEEP_GRANTED, &granted, &size)
 *   setsockopt(fd, SOL_PORTKEEP, PORTKEEP_ASSOCIATE, &granted.token, sizeof granted.token)
 *   setsockopt(owner, SOL_PORTKEEP, PORTKEEP_RELEASE, &granted.token, sizeof granted.token)
 *
 * Processes of the scope bind ports of the block by number. ASSOCIATE is for
 * sockets that bind to port 0 or connect without a bind: the kernel chooses a
 * free port of the block. Call it before bind.
 *
 * EINPROGRESS from ACQUIRE is not a failure: the agent checks whether the ports
 * are free. It does so for particular ports outside the pool, and for those of
 * the pool that were closed a moment ago. Poll PORTKEEP_GRANTED until `state`
 * is not PORTKEEP_PENDING; portkeep_wait() does that. Closing the socket
 * cancels the request.
 *
 * errno
 *
 *   ACQUIRE
 *     EINPROGRESS   wait, see above
 *     EADDRINUSE    a port of the block is reserved or in use
 *     ENOSPC        the pool has no free run of that length, or too few ephemeral ports would be left
 *     EDQUOT        your account holds as many ports or waiting requests as it may, or the socket
 *                   owns 128 reservations
 *     EACCES        the block has privileged ports, and you have no right to reserve those
 *     ENETDOWN      the agent has to check these ports, and no agent runs, or the check failed
 *     EINVAL        count is 0, the block passes 65535, or flags, scope, align, cgroup, also or size are wrong
 *     ENOMEM        the kernel has no memory for the reservation
 *   GRANTED
 *     ENOENT        this socket has made no request, or its reservation has ended
 *   ASSOCIATE, RELEASE
 *     ENOENT        there is no such reservation (any more)
 *     EPERM         ASSOCIATE: you are not in its scope. RELEASE: another process acquired it.
 *     EINVAL        the socket is bound already, or of another transport or network namespace
 *   bind
 *     EADDRINUSE    the port is used, or reserved by others (EACCES if the administrator chose that);
 *                   to port 0: every port of the block is used
 *     EACCES        the socket is associated, and the port is not in the block
 *   every option
 *     ENOPROTOOPT   kernel enforcement is not up: an administrator can run `portkeep up`.
 *                   getsockopt on an IPv4 socket reports EOPNOTSUPP instead.
 *     EOPNOTSUPP    the socket is neither TCP nor UDP; an MPTCP socket is neither
 *     EFAULT        a pointer is wrong
 *   portkeep_wait and portkeep_reserve also report
 *     ETIMEDOUT     the agent did not answer in time; the request still waits
 *     EINTR         a signal came; the request still waits
 */
#ifndef PORTKEEP_H
#define PORTKEEP_H

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The level of setsockopt(2) and getsockopt(2). */
#define SOL_PORTKEEP 0x504b
/* The version of the structures here, as PORTKEEP_VERSION reports it. */
#define PORTKEEP_ABI 5

/* setsockopt */
#define PORTKEEP_ACQUIRE 100   /* struct portkeep_acquire */
#define PORTKEEP_RELEASE 101   /* uint64_t token */
#define PORTKEEP_ASSOCIATE 102 /* uint64_t token */
#define PORTKEEP_SELECT 103    /* struct portkeep_select: what PORTKEEP_STATE shall report */

/* getsockopt */
#define PORTKEEP_VERSION 200 /* struct portkeep_version */
#define PORTKEEP_GRANTED 201 /* struct portkeep_grant: the outcome of this socket's last ACQUIRE */
#define PORTKEEP_STATE 202   /* struct portkeep_state of what was SELECTed */

/* Transports, as a set. */
#define PORTKEEP_TCP 1
#define PORTKEEP_UDP 2

/* Flags */
#define PORTKEEP_BOTH 1          /* the same numbers for TCP and UDP, one token */
#define PORTKEEP_STRICT 2        /* only associated sockets can bind the ports */
#define PORTKEEP_EPHEMERAL 4     /* binds to port 0 in the scope draw from the block; not with STRICT */
#define PORTKEEP_PERSISTENT 0x80 /* reported only: an administrator made it, and no socket owns it */

/* The scope: the processes that may bind the ports. */
#define PORTKEEP_SCOPE_PROCESS 0 /* the process that called ACQUIRE, and not its children */
#define PORTKEEP_SCOPE_USER 1    /* every process of its real uid: for servers that fork */
#define PORTKEEP_SCOPE_CGROUP 2  /* a cgroup and all below it */
#define PORTKEEP_SCOPE_GROUP 3   /* in struct portkeep_also, and reported for persistent reservations: a group, */
#define PORTKEEP_SCOPE_UNIT 4    /* a systemd unit, */
#define PORTKEEP_SCOPE_ADMIN 5   /* reported only: root and the administrators' group */

#define PORTKEEP_LABEL 24
#define PORTKEEP_COMM 16

/* A request. It may be passed with a size of 8, 16, 24 or 48 bytes: the fields left out are 0. */
struct portkeep_acquire {
	uint16_t start; /* the first port; 0: the system chooses ports of the pool */
	uint16_t count; /* how many ports, not 0 */
	uint32_t flags; /* PORTKEEP_BOTH | PORTKEEP_STRICT or PORTKEEP_EPHEMERAL */
	/* 8 */
	uint16_t scope; /* PORTKEEP_SCOPE_PROCESS, _USER or _CGROUP */
	uint16_t align; /* start is a multiple of this power of two; 0 and 1: any */
	uint16_t also;  /* how many struct portkeep_also follow the 48 bytes, at most PORTKEEP_ALSO_MAX */
	uint16_t zero;
	/* 16 */
	uint64_t cgroup; /* SCOPE_CGROUP: the inode number of the caller's cgroup folder or of one above; 0: the caller's */
	/* 24 */
	char label[PORTKEEP_LABEL]; /* shown by `portkeep list`, padded with zeros */
	/* 48 */
};

/*
 * Others that may bind the ports, in addition to the scope:
 *
 *   struct { struct portkeep_acquire request; struct portkeep_also also[1]; } both =
 *           { { .count = 1, .also = 1 }, { { PORTKEEP_SCOPE_UNIT, 0, "docker.service" } } };
 *   setsockopt(owner, SOL_PORTKEEP, PORTKEEP_ACQUIRE, &both, sizeof both)
 */
#define PORTKEEP_ALSO_MAX 4
struct portkeep_also {
	uint32_t kind;  /* PORTKEEP_SCOPE_USER, _GROUP or _UNIT */
	uint32_t id;    /* uid or gid, as the first user namespace numbers it */
	char name[128]; /* of the unit, padded with zeros */
};

/* States */
#define PORTKEEP_PENDING 1 /* the agent has not answered yet */
#define PORTKEEP_ACTIVE 2  /* reserved */
#define PORTKEEP_REFUSED 3 /* not reserved, `error` is the reason */

struct portkeep_grant {
	uint64_t token; /* names the reservation */
	uint16_t start;
	uint16_t count;
	uint8_t transports; /* PORTKEEP_TCP | PORTKEEP_UDP */
	uint8_t state;
	uint16_t error; /* an errno */
};

/* The subject of PORTKEEP_STATE. */
#define PORTKEEP_BY_TOKEN 1      /* the reservation with this token */
#define PORTKEEP_BY_PORT 2       /* the one that `port` of `transport` belongs to */
#define PORTKEEP_BY_NEXT 3       /* the first one that starts at `port` or after it */
#define PORTKEEP_BY_INDEX 4      /* the `port`-th that this socket owns, from 0 */
#define PORTKEEP_BY_ASSOCIATED 5 /* the one that this socket is associated with */

struct portkeep_select {
	uint16_t by;
	uint16_t port;
	uint8_t transport; /* PORTKEEP_TCP or PORTKEEP_UDP */
	uint8_t zero[3];
	uint64_t token;
};

/* As many struct portkeep_also follow it as the buffer has room for. A refused request has none any more. */
struct portkeep_state {
	uint64_t token;  /* 0 unless the caller may use the reservation */
	uint64_t netns;  /* as SO_NETNS_COOKIE reports it */
	uint64_t cgroup; /* of the scope, or of the owner */
	uint64_t since;  /* CLOCK_MONOTONIC, in ns */
	uint32_t pid;    /* of the owner process, in the first pid namespace */
	uint32_t uid;
	uint16_t start;
	uint16_t count;
	uint8_t transports;
	uint8_t state;
	uint8_t scope;
	uint8_t flags;
	uint32_t bound; /* ports of the block that are bound; TCP and UDP count separately */
	uint16_t error;
	uint16_t also; /* how many others may bind the ports */
	char comm[PORTKEEP_COMM];
	char label[PORTKEEP_LABEL];
	uint32_t gid; /* SCOPE_GROUP */
	uint32_t zero2;
};

struct portkeep_version {
	uint32_t abi;
	uint32_t agent; /* 1: an agent runs, so ports outside the pool can be reserved */
	uint16_t pool_first;
	uint16_t pool_last;    /* inclusive; 0: there is no pool */
	uint32_t reservations; /* in force on the whole machine */
	uint64_t ports;        /* in them */
	uint64_t since;        /* CLOCK_MONOTONIC of `portkeep up`, in ns */
};

/*
 * Waits until the socket's last request is decided, for about `timeout_ms`
 * milliseconds; a negative number: as long as it takes.
 * Returns 0 and fills `granted`, or returns -1 with errno. After ETIMEDOUT or
 * EINTR the request still waits: call again, or close the socket to cancel it.
 */
static inline int portkeep_wait(int owner, struct portkeep_grant *granted, int timeout_ms)
{
	int waited = 0, pause = 1;

	for (;;) {
		socklen_t size = sizeof(*granted);

		if (getsockopt(owner, SOL_PORTKEEP, PORTKEEP_GRANTED, granted, &size))
			return -1;
		if (granted->state == PORTKEEP_ACTIVE)
			return 0;
		if (granted->state != PORTKEEP_PENDING) {
			errno = granted->error;
			return -1;
		}
		if (timeout_ms >= 0 && waited >= timeout_ms) {
			errno = ETIMEDOUT;
			return -1;
		}
		if (poll(NULL, 0, pause) < 0)
			return -1;
		if (timeout_ms >= 0)
			waited += pause;
		if (pause < 16)
			pause *= 2;
	}
}

/* ACQUIRE, and the wait if the agent has to check the ports. */
static inline int portkeep_reserve(int owner, const struct portkeep_acquire *request, struct portkeep_grant *granted,
				   int timeout_ms)
{
	if (setsockopt(owner, SOL_PORTKEEP, PORTKEEP_ACQUIRE, request, sizeof(*request)) && errno != EINPROGRESS)
		return -1;
	return portkeep_wait(owner, granted, timeout_ms);
}

#ifdef __cplusplus
}
#endif

#endif
