/* Persistent reservations. */

#define PORT(number) htons((USHORT)(number))
#define GIVES(call, error)                                                                             \
	do {                                                                                           \
		ULONG gives_ = (call);                                                                 \
		if (gives_ != (ULONG)(error)) {                                                        \
			failures++;                                                                    \
			printf("%s:%d: %s gives %u, not %u\n", __FILE__, __LINE__, #call,              \
			       (unsigned)gives_, (unsigned)(error));                                   \
		}                                                                                      \
	} while (0)

static ULONG64 token;

static void p_start_0(void)
{
	GIVES(CreatePersistentTcpPortReservation(0, 1, &token), ERROR_INVALID_PARAMETER);
	GIVES(CreatePersistentUdpPortReservation(0, 1, &token), ERROR_INVALID_PARAMETER);
	GIVES(DeletePersistentTcpPortReservation(0, 1), ERROR_INVALID_PARAMETER);
	GIVES(DeletePersistentUdpPortReservation(0, 1), ERROR_INVALID_PARAMETER);
	GIVES(LookupPersistentTcpPortReservation(0, 1, &token), ERROR_INVALID_PARAMETER);
	GIVES(LookupPersistentUdpPortReservation(0, 1, &token), ERROR_INVALID_PARAMETER);
}

static void p_count_0(void)
{
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 0, &token), ERROR_INVALID_PARAMETER);
	GIVES(CreatePersistentUdpPortReservation(PORT(5300), 0, &token), ERROR_INVALID_PARAMETER);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 0), ERROR_INVALID_PARAMETER);
	GIVES(DeletePersistentUdpPortReservation(PORT(5300), 0), ERROR_INVALID_PARAMETER);
	GIVES(LookupPersistentTcpPortReservation(PORT(5300), 0, &token), ERROR_INVALID_PARAMETER);
	GIVES(LookupPersistentUdpPortReservation(PORT(5300), 0, &token), ERROR_INVALID_PARAMETER);
}

static void p_past_the_end(void)
{
	GIVES(CreatePersistentTcpPortReservation(PORT(65535), 2, &token), ERROR_INVALID_PARAMETER);
	GIVES(CreatePersistentUdpPortReservation(PORT(1), 65535, NULL), ERROR_INVALID_PARAMETER);
}

static void p_no_token(void)
{
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 1, NULL), ERROR_INVALID_PARAMETER);
	GIVES(CreatePersistentUdpPortReservation(PORT(5300), 1, (PULONG64)8), ERROR_INVALID_PARAMETER);
	GIVES(LookupPersistentTcpPortReservation(PORT(5300), 1, NULL), ERROR_INVALID_PARAMETER);
	GIVES(LookupPersistentUdpPortReservation(PORT(5300), 1, (PULONG64)8), ERROR_INVALID_PARAMETER);
}

static void p_no_right(void)
{
	token = UNTOUCHED;
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 1, &token), ERROR_ACCESS_DENIED);
	GIVES(CreatePersistentUdpPortReservation(PORT(5300), 1, &token), ERROR_ACCESS_DENIED);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 1), ERROR_ACCESS_DENIED);
	GIVES(DeletePersistentUdpPortReservation(PORT(5300), 1), ERROR_ACCESS_DENIED);
	CHECK(token == UNTOUCHED);
}

static void p_parameters_first(void)
{
	GIVES(CreatePersistentTcpPortReservation(0, 1, &token), ERROR_INVALID_PARAMETER);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 0), ERROR_INVALID_PARAMETER);
}

static void p_life(void)
{
	ULONG64 again = 0;
	token = 0;
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), NO_ERROR);
	CHECK(token != INVALID_PORT_RESERVATION_TOKEN);
	GIVES(LookupPersistentTcpPortReservation(PORT(5300), 20, &again), NO_ERROR);
	CHECK(again == token);
	GIVES(CreatePersistentUdpPortReservation(PORT(5300), 20, &again), NO_ERROR);
	CHECK(again != token);
	GIVES(DeletePersistentUdpPortReservation(PORT(5300), 20), NO_ERROR);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), NO_ERROR);
}

static void p_not_found(void)
{
	ULONG64 again = UNTOUCHED;
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), NO_ERROR);
	GIVES(LookupPersistentTcpPortReservation(PORT(5301), 19, &again), ERROR_NOT_FOUND);
	GIVES(LookupPersistentTcpPortReservation(PORT(5300), 19, &again), ERROR_NOT_FOUND);
	GIVES(LookupPersistentUdpPortReservation(PORT(5300), 20, &again), ERROR_NOT_FOUND);
	CHECK(again == UNTOUCHED);
	GIVES(DeletePersistentTcpPortReservation(PORT(5301), 19), ERROR_NOT_FOUND);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 21), ERROR_NOT_FOUND);
	GIVES(DeletePersistentUdpPortReservation(PORT(5300), 20), ERROR_NOT_FOUND);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), NO_ERROR);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), ERROR_NOT_FOUND);
	GIVES(LookupPersistentTcpPortReservation(PORT(5300), 20, &again), ERROR_NOT_FOUND);
}

static void p_overlap(void)
{
	ULONG64 again;
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), NO_ERROR);
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &again), ERROR_SHARING_VIOLATION);
	GIVES(CreatePersistentTcpPortReservation(PORT(5319), 2, &again), ERROR_SHARING_VIOLATION);
	GIVES(CreatePersistentTcpPortReservation(PORT(5320), 2, &again), NO_ERROR);
	GIVES(DeletePersistentTcpPortReservation(PORT(5320), 2), NO_ERROR);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), NO_ERROR);
}

static void p_in_use(void)
{
	SOCKET s = tcp();
	CHECK(bind_port(s, 5310) == 0);
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), ERROR_SHARING_VIOLATION);
	closesocket(s);
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), NO_ERROR);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), NO_ERROR);
}

static void p_runtime_in_the_way(void)
{
	SOCKET s = tcp();
	INET_PORT_RESERVATION_INSTANCE block;
	CHECK(acquire(s, 5310, 1, &block) == 0);
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), ERROR_SHARING_VIOLATION);
	CHECK(release(s, &block) == 0);
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), NO_ERROR);
	CHECK_ERROR(acquire(s, 5310, 1, &block), WSAEADDRINUSE);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), NO_ERROR);
	closesocket(s);
}

static void p_consumed(void)
{
	SOCKET s = tcp();
	INET_PORT_RESERVATION_INSTANCE block;
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), NO_ERROR);
	memcpy(&block.Token, &token, sizeof(token));
	CHECK(associate(s, &block) == 0 && bind_port(s, 0) == 0);
	CHECK(port_of(s) >= 5300 && port_of(s) < 5320);
	/* By any administrator's process. */
	CHECK(ask_another("token", token, &one, &two) && two == 0);
	closesocket(s);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), NO_ERROR);
	s = tcp();
	CHECK_ERROR(associate(s, &block), WSAEINVAL);
	closesocket(s);
}

static void p_not_released(void)
{
	SOCKET s = tcp();
	INET_PORT_RESERVATION_INSTANCE block;
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), NO_ERROR);
	memcpy(&block.Token, &token, sizeof(token));
	CHECK_ERROR(release(s, &block), WSAEINVAL);
	closesocket(s);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), NO_ERROR);
}

static void p_not_elevated(void)
{
	GIVES(CreatePersistentTcpPortReservation(PORT(5300), 20, &token), NO_ERROR);
	CHECK(ask_another("user-token", token, &one, &two));
	CHECK(one == WSAEINVAL && two == WSAEACCES);
	GIVES(DeletePersistentTcpPortReservation(PORT(5300), 20), NO_ERROR);
}
