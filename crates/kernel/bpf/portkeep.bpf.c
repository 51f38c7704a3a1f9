/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Port reservations as control codes on a socket, enforced by BPF programs.
 *
 * If you have never seen BPF: the kernel calls the functions below at the points
 * that their section names say (a setsockopt call, a bind, the last close ...),
 * in the context of the process that made the call, for every socket of the
 * processes below the cgroup they are attached to. They can read and change the
 * call's arguments, let it pass or refuse it, and they keep their state in the
 * maps of maps.h. Before loading them the kernel proves that they end and touch
 * no memory that is not theirs.
 *
 * Two rules hold throughout. For a port that is not reserved, anything that goes
 * wrong here (a map that is full, an entry that is missing) lets the call pass.
 * For a reserved port it refuses.
 *
 *   portkeep.h     what user space and the programs agree on
 *   maps.h         where the state is
 *   process.h      what a process is: groups, capabilities, unit, namespace
 *   quota.h        accounts and their limits
 *   token.h        making tokens that nobody can guess
 *   table.h        the port table: claiming, counting, freeing
 *   search.h       finding a free run in the pool
 *   range.h        private ephemeral ranges, by whom they are for
 *   also.h         others that a reservation lets in beside its scope
 *   reservation.h  the life of a reservation
 *   acquire.h      ACQUIRE
 *   manage.h       RELEASE, ASSOCIATE and the agent's mark
 *   query.h        what getsockopt reports
 *   use.h          which sockets count as users of a port
 *   draw.h         a free port of a block
 *   ephemeral.h    the private ephemeral range of a process
 *   bind.h         bind
 *   connect.h      connect, and TCP connections
 *   close.h        the last close
 *   admin.h        the administrator's door
 */
#include "uapi.h"

#include "admin.h"
#include "close.h"
#include "manage.h"
#include "query.h"

/*
 * An option that is not ours passes as it is, with what programs in cgroups
 * below have made of it. Only a value that is larger than what a program may
 * see has to be handed on by the kernel itself (EFAULT otherwise before Linux
 * 6.5, commit 29ebbba7d461); none of them can have changed such a value.
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
	/* -1: a program below has done it, as that of a second Portkeep there. */
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
	/* "Done": the kernel's own handler, which does not know this level, is skipped. */
	*(volatile __s32 *)&ctx->optlen = -1;
	return 1;
}

SEC("cgroup/getsockopt")
int portkeep_get(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	int error;

	/* 0: a program below has answered. The kernel itself does not know this level. */
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
 * Never read or loaded: with variables of these types their layouts are in the
 * object's BTF, where a test holds the Rust mirrors against them.
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

/* Keeps the helpers that only GPL-compatible programs may call open to us. */
char _license[] SEC("license") = "Dual MIT/GPL";
