/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Portkeep's kernel part: port reservations as control codes on a socket.
 *
 * If you have never seen BPF: the functions below are called by the kernel at
 * the points their section names say (a setsockopt call, a bind, the last
 * close ...), in the context of the process that made the call, for every
 * socket of the processes below the cgroup they are attached to. They can read
 * and change the call's arguments, let it pass or refuse it, and they keep
 * their state in the maps of maps.h. Before loading them the kernel proves that
 * they end and touch no memory that is not theirs.
 *
 * Two rules hold throughout. For a port nobody reserved, anything that goes
 * wrong here (a map that is full, an entry that is missing) lets the call
 * pass. For a reserved port it refuses.
 *
 *   portkeep.h     what user space and this side agree on
 *   maps.h         where the state is
 *   quota.h        who pays for it
 *   token.h        making tokens nobody can guess
 *   table.h        the port table: claiming, counting, freeing
 *   search.h       finding a free run in the pool
 *   reservation.h  the life of a reservation
 *   control.h      ACQUIRE, RELEASE, ASSOCIATE and the queries
 *   consume.h      bind, connect and close
 *   admin.h        the administrator's door
 */
#include "uapi.h"

#include "admin.h"
#include "consume.h"
#include "control.h"

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
	if (ctx->level != SOL_PORTKEEP) {
		/* "Unchanged": otherwise values larger than a page fail with EFAULT before Linux 6.5, and all are copied. */
		*(volatile __s32 *)&ctx->optlen = 0;
		return 1;
	}
	if (!sk)
		return 1;
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

	if (ctx->level != SOL_PORTKEEP || !sk) {
		*(volatile __s32 *)&ctx->optlen = 0;
		return 1;
	}
	if (ctx->optname == PORTKEEP_VERSION) {
		error = tell_version(ctx);
	} else if (!socket_transport(sk)) {
		error = EOPNOTSUPP;
	} else if (ctx->optname == PORTKEEP_GRANTED) {
		error = tell_granted(ctx, sk);
	} else if (ctx->optname == PORTKEEP_STATE) {
		error = tell_state(ctx, sk);
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
	return on_connect(ctx);
}

SEC("cgroup/connect6")
int portkeep_conn6(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx);
}

SEC("cgroup/sock_release")
int portkeep_close(struct bpf_sock *ctx)
{
	return on_release(ctx);
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
