&[
    (
        "a head may be seen after the look at the sockets",
        "acquire-automatic",
        "reservation.h",
        "		ORDERED(__sync_fetch_and_or(&w->heads, BIT(s->first)));
",
        "		__sync_fetch_and_or(&w->heads, BIT(s->first));
",
    ),
    (
        "the mark of ports that linger may be seen after the counts are read",
        "bind-twice-after",
        "reservation.h",
        "		ORDERED(__sync_fetch_and_or(&w->lingering, mask));
",
        "		__sync_fetch_and_or(&w->lingering, mask);
",
    ),
    (
        "a bind may be counted after its look",
        "acquire-automatic",
        "table.h",
        "	old = __sync_fetch_and_add(&w->uses[(port & 63) >> 1], port & 1 ? 1 << 16 : 1);
",
        "	__sync_fetch_and_add(&w->uses[(port & 63) >> 1], port & 1 ? 1 << 16 : 1);
	old = READ(w->uses[(port & 63) >> 1]);
",
    ),
    (
        "an entry may be seen free before its token is hidden",
        "release-acquire-bind",
        "reservation.h",
        "		ORDERED(__sync_fetch_and_and(&e->taken[(id >> 6) & (PORTKEEP_RESERVATIONS / 64 - 1)], ~BIT(id)));
",
        "		__sync_fetch_and_and(&e->taken[(id >> 6) & (PORTKEEP_RESERVATIONS / 64 - 1)], ~BIT(id));
",
    ),
]
