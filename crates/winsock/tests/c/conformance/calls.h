/* Rules that require more than one call. */

/* Ask this program, as another process, and read the numbers it answers; 0: it did not. */
static int ask_another(const char *what, ULONG64 number, int *one, int *two)
{
	char command[600], line[100] = "";
	FILE *answer;

	snprintf(command, sizeof(command), "\"%s\" %s %llu", self, what, (unsigned long long)number);
	answer = popen(command, "r");
	if (!answer)
		return 0;
	if (!fgets(line, sizeof(line), answer))
		line[0] = 0;
	pclose(answer);
	return sscanf(line, "answer %d %d", one, two) == 2;
}

/* The other process. */
static int be_another(const char *what, ULONG64 number)
{
	SOCKET s = tcp();
	INET_PORT_RESERVATION_INSTANCE block;
	int one = 0, two = 0;

	memset(&block, 0, sizeof(block));
#ifndef _WIN32
	if (!strcmp(what, "user-token") && (setgid(65534) || setuid(65534)))
		return 1;
#endif
	if (!strcmp(what, "token") || !strcmp(what, "user-token")) {
		memcpy(&block.Token, &number, sizeof(number));
		one = release(s, &block) == 0 ? 0 : WSAGetLastError();
		two = associate(s, &block) == 0 ? 0 : WSAGetLastError();
	} else if (!strcmp(what, "bind")) {
		one = bind_port(s, (int)number) == 0 ? 0 : WSAGetLastError();
		closesocket(s);
		s = udp();
		two = bind_port(s, (int)number) == 0 ? 0 : WSAGetLastError();
	}
	closesocket(s);
	printf("answer %d %d\n", one, two);
	return 0;
}

static int one, two;

static void reserved_is_reserved(void)
{
	INET_PORT_RESERVATION_INSTANCE block, other;
	SOCKET s = tcp(), t = tcp();
	CHECK(acquire(s, base, 4, &block) == 0);
	CHECK_ERROR(acquire(t, base + 3, 1, &other), WSAEADDRINUSE);
	CHECK_ERROR(acquire(s, base, 4, &other), WSAEADDRINUSE);
	CHECK_ERROR(acquire(t, base - 1, 2, &other), WSAEADDRINUSE);
	CHECK(acquire(t, base + 4, 1, &other) == 0);
	closesocket(t);
	closesocket(s);
}

static void transports_are_apart(void)
{
	INET_PORT_RESERVATION_INSTANCE block, other;
	SOCKET s = tcp(), u = udp();
	CHECK(acquire(s, base, 4, &block) == 0);
	CHECK(acquire(u, base, 4, &other) == 0);
	CHECK(block.Token != other.Token);
	closesocket(u);
	closesocket(s);
}

static void families_are_together(void)
{
	INET_PORT_RESERVATION_INSTANCE block, other;
	SOCKET s = tcp(), six = socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP);
	CHECK(acquire(s, base, 4, &block) == 0);
	CHECK_ERROR(acquire(six, base, 1, &other), WSAEADDRINUSE);
	closesocket(six);
	closesocket(s);
}

static void several_on_one_socket(void)
{
	INET_PORT_RESERVATION_INSTANCE block[3];
	SOCKET s = tcp();
	int i;
	for (i = 0; i < 3; i++)
		CHECK(acquire(s, 0, 8, &block[i]) == 0);
	CHECK(block[0].Token != block[1].Token && block[1].Token != block[2].Token);
	CHECK(release(s, &block[1]) == 0 && release(s, &block[0]) == 0 && release(s, &block[2]) == 0);
	closesocket(s);
}

static void bind_draws(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET keeper = tcp(), s = tcp(), t = tcp();
	CHECK(acquire(keeper, 0, 2, &block) == 0);
	CHECK(associate(s, &block) == 0 && associate(t, &block) == 0);
	CHECK(bind_port(s, 0) == 0 && bind_port(t, 0) == 0);
	CHECK(port_of(s) >= START_OF(block) && port_of(s) < START_OF(block) + 2);
	CHECK(port_of(t) >= START_OF(block) && port_of(t) < START_OF(block) + 2);
	CHECK(port_of(s) != port_of(t));
	closesocket(t);
	closesocket(s);
	closesocket(keeper);
}

static void bind_explicitly(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET keeper = tcp(), s = tcp();
	CHECK(acquire(keeper, 0, 4, &block) == 0);
	CHECK(associate(s, &block) == 0);
	CHECK(bind_port(s, START_OF(block) + 2) == 0 && port_of(s) == START_OF(block) + 2);
	closesocket(s);
	closesocket(keeper);
}

static void bind_outside(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET keeper = tcp(), s = tcp();
	CHECK(acquire(keeper, base, 4, &block) == 0);
	CHECK(associate(s, &block) == 0);
	CHECK_ERROR(bind_port(s, base + 4), WSAEACCES);
	closesocket(s);
	closesocket(keeper);
}

static void bind_exhausted(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET keeper = tcp(), s = tcp(), t = tcp();
	CHECK(acquire(keeper, 0, 1, &block) == 0);
	CHECK(associate(s, &block) == 0 && bind_port(s, 0) == 0);
	CHECK(associate(t, &block) == 0);
	CHECK_ERROR(bind_port(t, 0), WSAEADDRINUSE);
	closesocket(t);
	closesocket(s);
	closesocket(keeper);
}

static void associate_twice(void)
{
	INET_PORT_RESERVATION_INSTANCE block, other;
	SOCKET keeper = tcp(), s = tcp();
	CHECK(acquire(keeper, 0, 4, &block) == 0 && acquire(keeper, 0, 4, &other) == 0);
	CHECK(associate(s, &block) == 0 && associate(s, &other) == 0);
	CHECK(bind_port(s, 0) == 0);
	CHECK(port_of(s) >= START_OF(other) && port_of(s) < START_OF(other) + 4);
	closesocket(s);
	closesocket(keeper);
}

static void released_while_bound(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET s = tcp();
	int port;
	CHECK(acquire(s, 0, 4, &block) == 0);
	CHECK(associate(s, &block) == 0 && bind_port(s, 0) == 0);
	port = port_of(s);
	CHECK(release(s, &block) == 0);
	CHECK(port_of(s) == port && listen(s, 1) == 0);
	closesocket(s);
}

static void closed_is_over(void)
{
	INET_PORT_RESERVATION_INSTANCE block, other;
	SOCKET s = tcp(), t = tcp();
	CHECK(acquire(s, base, 4, &block) == 0);
	CHECK(closesocket(s) == 0);
	CHECK_ERROR(associate(t, &block), WSAEINVAL);
	CHECK_ERROR(release(t, &block), WSAEINVAL);
	CHECK(acquire(t, base, 4, &other) == 0);
	CHECK(block.Token != other.Token);
	closesocket(t);
}

static void a_duplicate_keeps_it(void)
{
	INET_PORT_RESERVATION_INSTANCE block, other;
	WSAPROTOCOL_INFOW info;
	SOCKET s = tcp(), t, u = tcp();
	DWORD me;
#ifdef _WIN32
	me = GetCurrentProcessId();
#else
	me = (DWORD)getpid();
#endif
	CHECK(acquire(s, base, 4, &block) == 0);
	CHECK(WSADuplicateSocketW(s, me, &info) == 0);
	t = WSASocketW(FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, &info, 0, WSA_FLAG_OVERLAPPED);
	CHECK(t != INVALID_SOCKET);
	CHECK(closesocket(s) == 0);
	CHECK_ERROR(acquire(u, base, 1, &other), WSAEADDRINUSE);
	CHECK(closesocket(t) == 0);
	CHECK(acquire(u, base, 1, &other) == 0);
	closesocket(u);
}

static void foreign_token(int of_release)
{
	INET_PORT_RESERVATION_INSTANCE block;
	ULONG64 token;
	SOCKET s = tcp();
	CHECK(acquire(s, 0, 2, &block) == 0);
	memcpy(&token, &block.Token, sizeof(token));
	CHECK(ask_another("token", token, &one, &two));
	CHECK(of_release ? one == WSAEINVAL : two == WSAEINVAL);
	/* It has done nothing. */
	CHECK(release(s, &block) == 0);
	closesocket(s);
}

static void foreign_release(void)
{
	foreign_token(1);
}

static void foreign_associate(void)
{
	foreign_token(0);
}

static void outsiders_get(int error)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET s = tcp(), u = udp();
	CHECK(acquire(s, base, 1, &block) == 0 && acquire(u, base, 1, &block) == 0);
	CHECK(ask_another("bind", (ULONG64)base, &one, &two));
	CHECK(one == error && two == error);
	closesocket(u);
	closesocket(s);
}

static void outsiders_get_eaddrinuse(void)
{
	outsiders_get(WSAEADDRINUSE);
}

static void outsiders_get_eacces(void)
{
	outsiders_get(WSAEACCES);
}

static void same_process_binds(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET keeper = tcp(), s = tcp();
	CHECK(acquire(keeper, base, 1, &block) == 0);
	CHECK(bind_port(s, base) == 0);
	closesocket(s);
	closesocket(keeper);
}

static void in_use_by_a_socket(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET server = tcp(), s = tcp();
	CHECK(bind_port(server, 5103) == 0);
	CHECK_ERROR(acquire(s, 5100, 8, &block), WSAEADDRINUSE);
	closesocket(server);
	CHECK(acquire(s, 5100, 8, &block) == 0);
	closesocket(s);
}

static void a_full_socket(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET s = tcp();
	int i;
	for (i = 0; i < 128; i++)
		CHECK(acquire(s, 0, 1, &block) == 0);
	CHECK_ERROR(acquire(s, 0, 1, &block), WSAENOBUFS);
	closesocket(s);
}


#ifndef _WIN32
static void *in_another_namespace(void *argument)
{
	INET_PORT_RESERVATION_INSTANCE *block = argument;
	SOCKET s;
	CHECK(unshare(CLONE_NEWNET) == 0);
	s = tcp();
	CHECK_ERROR(associate(s, block), WSAEINVAL);
	CHECK_ERROR(release(s, block), WSAEINVAL);
	closesocket(s);
	return NULL;
}

static void token_of_another_namespace(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	SOCKET s = tcp();
	pthread_t thread;
	CHECK(acquire(s, 0, 2, &block) == 0);
	CHECK(pthread_create(&thread, NULL, in_another_namespace, &block) == 0);
	pthread_join(thread, NULL);
	CHECK(release(s, &block) == 0);
	closesocket(s);
}

static void more_than_descriptors(void)
{
	INET_PORT_RESERVATION_INSTANCE block;
	struct rlimit before, few;
	SOCKET s = tcp();
	CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
	few = before;
	few.rlim_cur = 64;
	CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
	CHECK_ERROR(acquire(s, 0, 200, &block), WSAENOBUFS);
	CHECK(acquire(s, 0, 20, &block) == 0);
	CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
	closesocket(s);
}
#endif
