/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Port reservations as control codes on a socket, enforced by BPF programs.
 *
 * If you have never seen BPF: a BPF program is a small function that user space loads into the
 * kernel. Ours, except that of admin.h, are attached to a cgroup, which is a group of processes.
 * When a socket of a process in that cgroup, or in a cgroup below it, reaches the point that the
 * program's section name says (a setsockopt call, a bind, the last close ...), the kernel calls
 * the program, in the context of the process that made the call. The program can read and change
 * the arguments of the call, and let the call pass or refuse it. It keeps its state in maps,
 * which are tables in the kernel (maps.h). Before the kernel loads a program, its verifier
 * proves that the program ends, and that it uses no memory other than its own.
 *
 * Two rules apply everywhere. If something goes wrong here (a map is full, an entry is missing),
 * a call for a port that is not reserved passes, and a call for a reserved port is refused.
 *
 *   portkeep.h     the interface between user space and the programs
 *   maps.h         where the state is
 *   process.h      the properties of a process: groups, capabilities, unit, namespace
 *   quota.h        accounts and their limits
 *   token.h        making tokens that nobody can guess
 *   table.h        the port table: claiming, counting, freeing
 *   search.h       finding a free run in the pool
 *   range.h        private ephemeral ranges, by the processes that they are for
 *   also.h         others that a reservation admits beside its scope
 *   reservation.h  the life of a reservation
 *   acquire.h      ACQUIRE
 *   manage.h       RELEASE, ASSOCIATE and the agent's mark
 *   query.h        what getsockopt reports
 *   use.h          which sockets count as users of a port
 *   draw.h         a free port of a block
 *   ephemeral.h    the private ephemeral range of a process
 *   bind.h         bind
 *   connect.h      connect, and TCP connections
 *   close.h        the last close of a socket
 *   admin.h        the administrator program
 */
#include "uapi.h"

#include "admin.h"
#include "close.h"
#include "manage.h"
#include "query.h"

/*
 * An option that is not ours passes unchanged; programs attached to cgroups below may have changed
 * it before. A program sees only the first part of a value that is too large. For such a value the
 * kernel itself has to use what the process gave: `optlen` 0 says so. (Otherwise the call fails
 * with EFAULT before Linux 6.5, commit 29ebbba7d461.) No program can have changed such a value.
 */
__inline int not_ours(struct bpf_sockopt *ctx)
{
	if (ctx->optlen > ctx->optval_end - ctx->optval)
		*(volatile __s32 *)&ctx->optlen = 0;
	return 1;
}

SEC("cgroup/setsockopt")
int portkeep_set(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 transport;
	int error;

	if (ctx->level == SOL_SOCKET && ctx->optname == SO_REUSEADDR && sk && keeps_reuseaddr(ctx, sk)) {
		*(volatile __s32 *)&ctx->optlen = -1;
		return 1;
	}
	/* -1: a program attached to a cgroup below has served the option, for example that of a second Portkeep. */
	if (ctx->level != SOL_PORTKEEP || !sk || ctx->optlen == -1)
		return not_ours(ctx);
	transport = socket_transport(sk);
	if (!transport) {
		error = EOPNOTSUPP;
	} else {
		switch (ctx->optname) {
		case PORTKEEP_ACQUIRE:
			error = acquire(ctx, sk, transport);
			break;
		case PORTKEEP_RELEASE:
			error = release(ctx, sk, transport);
			break;
		case PORTKEEP_ASSOCIATE:
			error = associate(ctx, sk, transport);
			break;
		case PORTKEEP_SELECT:
			error = select(ctx, sk);
			break;
		case PORTKEEP_AGENT:
			error = agent_mark(ctx, sk);
			break;
		default:
			error = ENOPROTOOPT;
		}
	}
	if (error) {
		bpf_set_retval(-error);
		return 0;
	}
	/* -1 means "done": the kernel skips its own handler, which does not know this level. */
	*(volatile __s32 *)&ctx->optlen = -1;
	return 1;
}

SEC("cgroup/getsockopt")
int portkeep_get(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	int error;

	/* retval 0: a program attached to a cgroup below has answered. The kernel itself does not know this level. */
	if (ctx->level != SOL_PORTKEEP || !sk || !ctx->retval)
		return not_ours(ctx);
	if (ctx->optname == PORTKEEP_VERSION) {
		error = report_version(ctx);
	} else if (!socket_transport(sk)) {
		error = EOPNOTSUPP;
	} else if (ctx->optname == PORTKEEP_GRANTED) {
		error = report_granted(ctx, sk);
	} else if (ctx->optname == PORTKEEP_STATE) {
		error = report_state(ctx, sk);
	} else {
		error = ENOPROTOOPT;
	}
	if (error) {
		bpf_set_retval(-error);
		return 0;
	}
	return 1;
}

SEC("cgroup/bind4")
int portkeep_bind4(struct bpf_sock_addr *ctx)
{
	return on_bind(ctx);
}

SEC("cgroup/bind6")
int portkeep_bind6(struct bpf_sock_addr *ctx)
{
	return on_bind(ctx);
}

SEC("cgroup/post_bind4")
int portkeep_bound4(struct bpf_sock *ctx)
{
	return on_post_bind(ctx);
}

SEC("cgroup/post_bind6")
int portkeep_bound6(struct bpf_sock *ctx)
{
	return on_post_bind(ctx);
}

SEC("cgroup/connect4")
int portkeep_conn4(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx, 0);
}

SEC("cgroup/connect6")
int portkeep_conn6(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx, 1);
}

SEC("cgroup/sock_release")
int portkeep_close(struct bpf_sock *ctx)
{
	return on_release(ctx);
}

SEC("sockops")
int portkeep_tcp(struct bpf_sock_ops *ctx)
{
	return on_tcp(ctx);
}

SEC("classifier")
int portkeep_admin(struct __sk_buff *ctx)
{
	return on_admin(ctx);
}

/*
 * Never read or loaded. Because of these variables the layouts of their types are in the
 * type information (BTF) of the object. A test compares the Rust mirrors with these layouts.
 */
const struct {
	struct portkeep_acquire acquire;
	struct portkeep_also also;
	struct portkeep_grant grant;
	struct portkeep_select select;
	struct portkeep_state state;
	struct portkeep_version version;
	struct portkeep_agent agent;
	struct admin_request admin;
	struct event event;
} layouts SEC(".layouts") = {};

/* Some helpers are only for programs whose license is compatible with the GPL. The kernel reads the license here. */
char _license[] SEC("license") = "Dual MIT/GPL";
