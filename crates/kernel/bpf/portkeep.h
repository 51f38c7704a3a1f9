/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The interface between the BPF programs and user space: the control codes with their
 * request and answer structures, and the values of the maps (tables in the kernel that both
 * sides use). The Rust mirrors are in portkeep-core (wire) and portkeep-kernel (maps). A
 * test compares them with the type information (BTF) of the object built from this file.
 *
 * Every port in this file is in HOST byte order. (INET_PORT_RANGE.StartPort is in network
 * order; the Winsock layer converts it before it calls the programs.)
 */
#ifndef PORTKEEP_H
#define PORTKEEP_H

/* The private level of setsockopt(2) and getsockopt(2): "PK". */
#define SOL_PORTKEEP 0x504b
#define PORTKEEP_ABI 5

/* setsockopt */
#define PORTKEEP_ACQUIRE 100   /* struct portkeep_acquire */
#define PORTKEEP_RELEASE 101   /* __u64 token */
#define PORTKEEP_ASSOCIATE 102 /* __u64 token */
#define PORTKEEP_SELECT 103    /* struct portkeep_select: what PORTKEEP_STATE shall report */
#define PORTKEEP_AGENT 104     /* struct portkeep_agent: the agent's own sockets */

/* getsockopt */
#define PORTKEEP_VERSION 200 /* struct portkeep_version */
#define PORTKEEP_GRANTED 201 /* struct portkeep_grant: what this socket's last ACQUIRE gave */
#define PORTKEEP_STATE 202   /* struct portkeep_state of what was SELECTed, and its `also` */

/* Transports, as a set of bits: a reservation with `both` has both bits. */
#define PORTKEEP_TCP 1
#define PORTKEEP_UDP 2

/* Flags of a request and of a reservation. */
#define PORTKEEP_BOTH 1   /* the same numbers for TCP and UDP, one token */
#define PORTKEEP_STRICT 2 /* using the ports requires association */
#define PORTKEEP_EPHEMERAL 4 /* a private ephemeral range: binds to port 0 in its scope draw from it (E1) */
#define PORTKEEP_PERSISTENT 0x80 /* of a reservation, never of a request: an administrator made it, no socket owns it */

/* The scope of a reservation. */
#define PORTKEEP_SCOPE_PROCESS 0 /* the owner process: the Windows rule */
#define PORTKEEP_SCOPE_USER 1    /* processes of the owner's real uid */
#define PORTKEEP_SCOPE_CGROUP 2  /* a cgroup and all below it */
/* For persistent reservations (administrators may associate with any of them) and for struct portkeep_also. */
#define PORTKEEP_SCOPE_GROUP 3 /* processes of a group */
#define PORTKEEP_SCOPE_UNIT 4  /* processes of a systemd unit */
#define PORTKEEP_SCOPE_ADMIN 5 /* of persistent ones only: root, and the administrators' group */

#define PORTKEEP_LABEL 24
#define PORTKEEP_COMM 16

/*
 * A request. Its size is its version, as with openat2(2): 8, 16, 24 or 48 bytes. The
 * fields that a shorter form leaves out are 0. After the 48 bytes come `also` elements of
 * struct portkeep_also. If `also` is 0, only zeros may follow. Examples (8-byte form):
 *
 *   { .start = 0,    .count = 4 }                  any four ports in a row
 *   { .start = 5000, .count = 20 }                 5000..5019 and no others
 *   { .start = 0, .count = 2, .flags = BOTH }      a pair for TCP and UDP
 */
struct portkeep_acquire {
	__u16 start; /* first port, 0 = the system chooses (wildcard) */
	__u16 count; /* how many ports, not 0 */
	__u32 flags; /* PORTKEEP_BOTH | PORTKEEP_STRICT, or PORTKEEP_BOTH | PORTKEEP_EPHEMERAL */
	/* 8 */
	__u16 scope; /* PORTKEEP_SCOPE_* */
	__u16 align; /* start is a multiple of this power of two; 0 and 1: any */
	__u16 also; /* how many others are let in, see struct portkeep_also */
	__u16 zero;
	/* 16 */
	__u64 cgroup; /* SCOPE_CGROUP: id of the caller's cgroup or one above it; 0 = the caller's */
	/* 24 */
	char label[PORTKEEP_LABEL]; /* shown in listings, padded with zeros */
	/* 48 */
};

/*
 * Others who may use the ports, beside the scope (R11). Examples:
 *
 *   { .kind = SCOPE_UNIT, .name = "docker.service" }
 *   { .kind = SCOPE_USER, .id = 33 }
 */
#define PORTKEEP_ALSO_MAX 4 /* of a reservation */
#define PORTKEEP_PLACE_NAME 128
struct portkeep_also {
	__u32 kind; /* PORTKEEP_SCOPE_USER, _GROUP or _UNIT */
	__u32 id; /* uid or gid, as the first user namespace numbers it */
	__u64 name[PORTKEEP_PLACE_NAME / 8]; /* of a unit: characters, padded with zeros */
};

/* States of a reservation. */
#define PORTKEEP_PENDING 1 /* claimed, waits for the agent */
#define PORTKEEP_ACTIVE 2  /* in force */
#define PORTKEEP_REFUSED 3 /* taken back by the agent, `error` says why */

struct portkeep_grant {
	__u64 token;
	__u16 start;
	__u16 count;
	__u8 transports;
	__u8 state;
	__u16 error; /* errno of a refused request */
};

/* The subject of PORTKEEP_STATE. */
#define PORTKEEP_BY_TOKEN 1      /* the reservation with this token */
#define PORTKEEP_BY_PORT 2       /* the one that `port` of `transport` belongs to */
#define PORTKEEP_BY_NEXT 3       /* the first one whose start is at or after `port` */
#define PORTKEEP_BY_INDEX 4      /* the `port`-th this socket owns, from 0 */
#define PORTKEEP_BY_ASSOCIATED 5 /* the one this socket is associated with */

struct portkeep_select {
	__u16 by;
	__u16 port; /* or an index */
	__u8 transport; /* PORTKEEP_TCP or PORTKEEP_UDP */
	__u8 zero[3];
	__u64 token;
};

/*
 * In the answer, elements of struct portkeep_also follow it: as many of its `also` as the buffer has room
 * for. If there are fewer although there is room, the reservation was changed during the call: ask again.
 */
struct portkeep_state {
	__u64 token; /* 0 unless the caller may use it */
	__u64 netns; /* cookie, as SO_NETNS_COOKIE gives it */
	__u64 cgroup; /* id of the scope's cgroup, or of the owner's */
	__u64 since; /* CLOCK_MONOTONIC, ns */
	__u32 pid; /* of the owner process, in the first pid namespace */
	__u32 uid; /* of the owner; persistent: the one it is for, with SCOPE_USER */
	__u16 start;
	__u16 count;
	__u8 transports;
	__u8 state;
	__u8 scope;
	__u8 flags;
	__u32 bound; /* ports of the block with at least one bound socket; of TCP and of UDP */
	__u16 error;
	__u16 also; /* how many others are let in */
	char comm[PORTKEEP_COMM];
	char label[PORTKEEP_LABEL];
	__u32 gid; /* persistent, SCOPE_GROUP: the one it is for */
	__u32 zero2;
};

struct portkeep_version {
	__u32 abi;
	__u32 agent; /* 1: specific requests outside the pool can be confirmed */
	__u16 pool_first;
	__u16 pool_last; /* inclusive */
	__u32 reservations; /* in force on the whole machine */
	__u64 ports; /* in them */
	__u64 since; /* CLOCK_MONOTONIC of `up`, ns */
};

/* The agent marks its own sockets with the secret of the config map. */
#define PORTKEEP_AGENT_BEACON 1 /* while it is open the agent counts as running */
#define PORTKEEP_AGENT_PROBE 2  /* may try reserved ports: a bind probe for vacancy */
#define PORTKEEP_AGENT_READER 3 /* while it is open events are written to the ring */

struct portkeep_agent {
	__u64 secret[2];
	__u32 role;
	__u32 zero;
};

/* ---- maps ---------------------------------------------------------------- */

#define PORTKEEP_PRIVILEGED_GROUPS 8

/* The one element of `config`: written by `up` and `reload`, only read here. */
struct config {
	__u32 abi;
	__u32 round_keys[27]; /* of the token cipher */
	__u64 secret[2];
	__u64 since;
	__u64 build; /* of the object these programs came from */
	__u64 enforce; /* id of the cgroup whose sockets are held to the reservations */
	__u64 serve; /* id of the cgroup whose sockets may use the control codes */
	__u32 deny_errno; /* the errno of an outsider's bind */
	__u32 quota; /* ports an account may hold, unless `quotas` says otherwise; root: no limit */
	__u16 pool_first;
	__u16 pool_last; /* inclusive; 0 = no pool */
	__u32 transient; /* goes when the last `run` that needs it ends */
	__u32 admin_gid; /* the administrators' group, 0 = root only */
	__u32 group_quotas; /* `group_limits` is worth a look */
	__u32 enforce_level; /* of `enforce` below the root */
	__u32 share; /* of the port table that an account may take, in words */
	__u64 home; /* the machine's own network namespace; 0 = not known */
	__u32 quota_elsewhere; /* ports that root of another namespace may hold */
	__u32 accounts_from; /* the lowest uid that `accounts` knows, 0 = there is none */
	__u32 unprivileged_start; /* of `home`: ports below it need a right to be acquired (A8) */
	__u32 privileged_users; /* `privileged` has elements */
	__u32 privileged_gids[PORTKEEP_PRIVILEGED_GROUPS]; /* groups with that right, 0 = none */
};

/* The one element of `counters`. It changes all the time, so it has cache lines of its own. */
struct counters {
	__u64 ports;
	__u32 reservations;
	__u32 agents; /* open beacons */
	__u32 listeners; /* who reads the event ring */
	__u32 lost; /* events that found the ring full */
	__u64 refused; /* binds of outsiders */
	__u32 ranges[8]; /* elements of the map of that name, by kind */
};

/*
 * The port table. An element, called a word, is for 64 ports of one transport in one network namespace.
 *
 * Example: a reservation with id 7 of ports 130..259 covers bits 2..63 of word
 * 2, all of word 3 and bits 0..3 of word 4. `reserved` has all those bits;
 * word 2 has bit 2 of `heads` and owner[2] = 7; words 3 and 4 have lead = 7.
 */
struct word_key {
	__u64 netns;
	__u16 word; /* port / 64 */
	__u16 transport; /* PORTKEEP_TCP or PORTKEEP_UDP */
	__u32 zero;
};

/*
 * Ports that may be in use although no bound socket is counted. Each bit
 * expires: only the bits of this period and of the period before it count.
 */
struct expiring {
	__u64 ports[2]; /* of the even periods, of the odd ones */
	__u64 period; /* the latest one written in */
};

struct word {
	__u64 reserved; /* claimed, or lingering */
	__u64 heads; /* first port of a block: owner[] is valid here */
	__u64 lingering; /* block ended, sockets still bound: freed by the last one */
	__u64 drawn; /* chosen by a bind that is under way; a hint */
	__u64 aside; /* in use by a socket whose close no program sees; user space clears the bit */
	struct expiring left; /* closed lately: connections may be left behind. Wildcard searches prefer other ports. */
	struct expiring closing; /* closed, and the kernel may need a while: counts as in use */
	__u64 payer; /* the account whose share it is */
	__u32 lead; /* id of the block that reaches in from the word before */
	__u32 bound; /* sockets bound to any of the ports: the sum of `uses` */
	__u32 sealed; /* about to be removed: no program touches it any more */
	__u32 zero;
	__u32 owner[64];
	__u32 uses[32]; /* bound sockets per port, 16 bits each: even port low, odd port high */
};

/*
 * The reservations are an array, and an id is an index of it. (In
 * a hash map, entering and removing an element took a tenth of the
 * time of a whole acquire + query + release.) Id 0 means "none".
 */
#define PORTKEEP_RESERVATIONS 65536

struct entries {
	__u32 hint; /* word of `taken` to try first */
	__u32 zero;
	__u64 taken[PORTKEEP_RESERVATIONS / 64];
};

/*
 * How many namespaces have a reserved port in a word. If the number is 0, a bind
 * needs no look-up in the port table. Row 0 is TCP, row 1 is UDP. The highest
 * bit says that a socket has been counted there at some time. If that bit is not
 * set and the number is 0, a search for free ports needs no look-up either.
 */
#define PORTKEEP_FILTER_COUNTED 0x80000000u
struct filter {
	__u32 words[2 * 1024];
};

/*
 * `gate` says in which state the reservation is. When the reservation ends, its
 * gate is shut: it becomes 0. Before that, gate = token ^ state, so the state is
 * in its lowest bits. Tokens are never 0 to 7, so this is never 0. The states:
 */
#define PORTKEEP_GATE_ACTIVE 0
#define PORTKEEP_GATE_PENDING 1 /* waits for the agent */
#define PORTKEEP_GATE_CONTESTED 2 /* waited, and a bind was quicker: it will be refused */
#define PORTKEEP_GATE_CLAIMING 3 /* ACQUIRE is under way, and alone takes further steps */
#define PORTKEEP_GATE_OUTRUN 4 /* ACQUIRE is under way, and a bind was quicker */

struct reservation {
	__u64 gate;
	__u64 token; /* 0: the entry is free */
	__u64 generation; /* how many reservations this entry has had */
	__u64 refusal; /* refused entries: see reservation.h */
	__u64 netns;
	__u64 cgroup; /* of a persistent range the hash of its names, see range_key */
	__u64 since;
	__u64 payer; /* the account its ports are charged to; NOBODY: none */
	__u32 pid;
	__u32 uid;
	__u16 start;
	__u16 count;
	__u8 transports;
	__u8 scope;
	__u8 flags;
	__u8 level; /* of the scope's cgroup below the root, for SCOPE_CGROUP */
	__u32 next; /* where the next draw begins, as an offset into the block */
	__u32 also; /* how many others are let in, plus 8 for each change of them */
	char comm[PORTKEEP_COMM];
	char label[PORTKEEP_LABEL];
	__u32 gid; /* for SCOPE_GROUP */
	__u32 exhausted; /* when this was last reported of a private ephemeral range, s */
	__u16 slot; /* in the owner socket's list */
	__u16 error;
	__u32 zero;
};
#define PORTKEEP_ALSO_COUNT 7 /* the bits of `also` that are their number */

/*
 * The others that a reservation admits. The key is its token. Tokens
 * never repeat, so an element belongs to this reservation or to none.
 */
struct admitted_key {
	__u64 token;
	__u32 also; /* that of the reservation */
	__u32 n; /* from 0 */
};

/*
 * Private ephemeral ranges. The key is whom a range is for, the value is the id of the reservation.
 *
 * Example: a range for TCP and UDP of the user 1000 in the namespace 1 is two
 * elements, {1, 1000, SCOPE_USER, TCP, 0} and {1, 1000, SCOPE_USER, UDP, 0}.
 */
struct range_key {
	__u64 netns;
	__u64 id; /* pid, cgroup id, uid or gid; of a unit the hash of its name, of a path that of its names */
	__u32 kind; /* PORTKEEP_SCOPE_*, or PORTKEEP_RANGE_PATH */
	__u16 transport; /* PORTKEEP_TCP or PORTKEEP_UDP */
	__u16 level; /* of RANGE_PATH: below the root */
};
#define PORTKEEP_RANGE_PATH 5 /* a persistent SCOPE_CGROUP */
#define PORTKEEP_RANGE_ALL 7 /* in counters: the sum */

/*
 * The audience of a persistent reservation, if it is a unit or a cgroup.
 * They are stored by name: cgroups are removed and made again, and a cgroup
 * has another id each time its service starts. Names are padded with zeros.
 *
 * Example: the reservation with id 7 is for unit "postgresql.service": one
 * element {7, 0}. That with id 8 is for cgroup /system.slice/web.service:
 * {8, 1} is "system.slice" and {8, 2} is "web.service".
 */
struct place_key {
	__u32 id; /* of the reservation */
	__u32 level; /* below the root; 0: a unit */
};

#define PORTKEEP_PLACE_DEPTH 32
struct place {
	__u64 name[PORTKEEP_PLACE_NAME / 8]; /* characters */
};

/* How often a process was refused lately: a process that tries in a loop must not fill the ring buffer of events. */
#define PORTKEEP_REFUSALS 10 /* reported one by one in a second, for each process */
struct offender {
	__u64 second; /* when it began, ns */
	__u32 told; /* in it */
	__u32 untold; /* since the last one reported */
};

/* A network namespace: where wildcard searches begin, and when it was last in use. */
struct space {
	__u32 cursor[3]; /* TCP, UDP, both */
	__u16 avoid_first; /* pool ports that the kernel's automatic choice may give to anybody ... */
	__u16 avoid_last; /* ... inclusive, 0 = none. Searches come to them last (N3). */
	__u64 payer; /* as in `word` */
	__u64 last; /* CLOCK_MONOTONIC of the last ACQUIRE, ns */
};

/*
 * The ports of an account. An account is a uid. The account of a subordinate uid
 * (/etc/subuid) is the uid of its user. In each network namespace other than `home`,
 * root has an account of its own: ROOT_ELSEWHERE plus the cookie of the namespace.
 */
struct quota {
	__u32 used; /* ports, and one for each refused request that its owner has not asked about */
	__u32 limit; /* 0 = the default, UNLIMITED = none */
	__u32 words; /* of the port table; each namespace counts as SPACE_WORDS more */
	__u32 pending; /* requests that wait for the agent */
};
#define PORTKEEP_UNLIMITED 0xffffffffu
#define PORTKEEP_SEALED 0x40000000u /* in `used`: about to be removed, no program touches it any more */
#define PORTKEEP_NOBODY (~0ULL)
#define PORTKEEP_ROOT_ELSEWHERE (1ULL << 63)
#define PORTKEEP_SPACE_WORDS 8
#define PORTKEEP_PENDING_MAX 64 /* of one account other than root's, at a time */

/* The account of a range of uids; the longest prefix counts. Example: {16, htonl(0x00020000)} is 131072..196607. */
struct account_key {
	__u32 prefix; /* bits that count */
	__u32 uid; /* network byte order */
};

/* The state of a socket, kept by the kernel as long as the socket lives. */
struct socket_state {
	struct portkeep_select select;
	__u64 token; /* associated with */
	__u64 claim_token; /* the bind under way consumes this one ... */
	__u32 id; /* of `token` */
	__u32 held; /* why it counts in `uses`: PORTKEEP_HELD_* */
	__u16 claim_port; /* ... at this port */
	__u16 drawn_port; /* its bit is set in `drawn` */
	__u16 bound_port; /* counted in `uses` */
	__u8 transport; /* PORTKEEP_TCP or PORTKEEP_UDP */
	__u8 role; /* PORTKEEP_AGENT_* */
	__u8 subflow; /* of an MPTCP socket, which is the one that is counted */
	__u8 consumer; /* let in by a reservation, which gave it SO_REUSEADDR */
	__u8 zero[6];
};
#define PORTKEEP_HELD_OPEN 1 /* a descriptor is open */
#define PORTKEEP_HELD_CONNECTION 2 /* a connection uses the port, perhaps longer than that */

/*
 * The reservations that a socket owns, so that its last close can end them.
 * If one ended in another way (released through another socket, or ended by
 * the administrator), its token stays here until the slot is needed.
 */
#define PORTKEEP_OWNED 128
struct owner_state {
	__u64 last; /* token of the latest, for PORTKEEP_GRANTED */
	__u32 last_id; /* and its id */
	__u32 hint; /* slot to try first */
	__u64 token[PORTKEEP_OWNED];
};

/* Events. The programs write them to the ring buffer, and user space reads them from it. */
#define PORTKEEP_EVENT_GRANTED 1
#define PORTKEEP_EVENT_ENDED 2
#define PORTKEEP_EVENT_REFUSED 3 /* a bind of an outsider */
#define PORTKEEP_EVENT_PENDING 4 /* to be confirmed by the agent */
#define PORTKEEP_EVENT_EXHAUSTED 5 /* a bind to port 0 found its private ephemeral range used up */

struct event {
	__u32 kind;
	__u32 id; /* reservation, 0 if there is none */
	__u64 when; /* CLOCK_MONOTONIC, ns */
	__u64 netns;
	__u64 cgroup; /* of the process */
	__u32 pid; /* the process that did it */
	__u32 tid;
	__u32 uid;
	__u16 start; /* block, or the port refused */
	__u16 count;
	__u8 transports;
	__u8 zero[3];
	__u32 owner; /* pid */
	char comm[PORTKEEP_COMM];
	__u32 untold; /* refusals of the same process since the last event of it */
	__u32 zero2;
};

/*
 * The administrator program: user space runs the program `portkeep_admin`, with this structure in
 * the place of a network packet. It begins with 16 bytes of padding, where a packet has its header.
 */
#define PORTKEEP_ADMIN_CONFIRM 1  /* PENDING -> ACTIVE */
#define PORTKEEP_ADMIN_REFUSE 2   /* PENDING -> REFUSED with `error` */
#define PORTKEEP_ADMIN_END 3      /* end anybody's reservation */
#define PORTKEEP_ADMIN_ASIDE 4    /* `start` is in use by a socket that no program saw being bound */
#define PORTKEEP_ADMIN_UNASIDE 5  /* it no longer is */
/* After each of these two come `also` elements of struct portkeep_also. */
#define PORTKEEP_ADMIN_CREATE 6   /* a persistent reservation, PENDING; `id`, `token` and `start` are the answer */
#define PORTKEEP_ADMIN_CHANGE 7   /* whom a persistent one is for, and its label; the ports stay reserved meanwhile */
#define PORTKEEP_ADMIN_LIMIT 8    /* `account` may hold `limit` ports */
#define PORTKEEP_ADMIN_FORGET 9   /* `limit` words that `account` had are gone */
#define PORTKEEP_ADMIN_SEAL 10    /* the word of `start` is about to be removed; `limit` 0: it is not */
#define PORTKEEP_ADMIN_SEAL_QUOTA 11 /* likewise the quota of `account` */
#define PORTKEEP_ADMIN_AVOID 12   /* searches in `netns` come last to `start` .. `start` + `count` - 1; count 0: to none */

/* Example: { .op = CREATE, .start = 5432, .count = 1, .transports = TCP, .scope = SCOPE_UNIT, .label = "postgres" } */
struct admin_request {
	__u8 padding[16];
	__u32 op;
	__u32 id;
	__u64 token;
	__u64 netns;
	__u16 start; /* CREATE: 0 = any of the pool */
	__u16 count;
	__u8 transports; /* a set; of ASIDE and UNASIDE one */
	__u8 scope;
	__u8 flags;
	__u8 level; /* of SCOPE_CGROUP: how many `places` identify it */
	__u32 error;
	__u32 uid;
	__u32 gid;
	__u16 align;
	__u16 zero;
	char label[PORTKEEP_LABEL];
	__u32 limit; /* 0 = the default, UNLIMITED = none */
	__u32 also;
	__u64 account; /* CREATE and CHANGE: the hash of the names it is for, see range_key */
};

#endif
