/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Runtime port reservations: the control codes and their structures. */
#ifndef PORTKEEP_MSTCPIP_H
#define PORTKEEP_MSTCPIP_H

#include "ws2def.h"

#define SIO_ACQUIRE_PORT_RESERVATION _WSAIOW(IOC_VENDOR, 100)
#define SIO_RELEASE_PORT_RESERVATION _WSAIOW(IOC_VENDOR, 101)
#define SIO_ASSOCIATE_PORT_RESERVATION _WSAIOW(IOC_VENDOR, 102)

/*
 * Example: ports 5000..5019 are { htons(5000), 20 }, any 20 in a row { 0, 20 }.
 * The start is in network byte order, the number is not.
 */
typedef struct _INET_PORT_RANGE {
	USHORT StartPort;
	USHORT NumberOfPorts;
} INET_PORT_RANGE, *PINET_PORT_RANGE;

typedef struct _INET_PORT_RANGE INET_PORT_RESERVATION, *PINET_PORT_RESERVATION;

typedef struct {
	ULONG64 Token;
} INET_PORT_RESERVATION_TOKEN, *PINET_PORT_RESERVATION_TOKEN;

#define INVALID_PORT_RESERVATION_TOKEN ((ULONG64)0)

/*
 * C++ has named members, C has nameless ones, as in Microsoft's header; in C the first may also be spelled as in C++.
 * The size is 16 bytes, with the token at 8. This is so on 32-bit systems, too, where a ULONG64 would otherwise be at
 * 4.
 */
typedef struct {
#ifdef __cplusplus
	INET_PORT_RESERVATION Reservation;
	alignas(8) INET_PORT_RESERVATION_TOKEN Token;
#else
	union {
		INET_PORT_RESERVATION Reservation;
		struct {
			USHORT StartPort;
			USHORT NumberOfPorts;
		};
	};
	_Alignas(8) ULONG64 Token;
#endif
} INET_PORT_RESERVATION_INSTANCE, *PINET_PORT_RESERVATION_INSTANCE;

/* No public call uses it. */
typedef struct {
	ULONG OwningPid;
} INET_PORT_RESERVATION_INFORMATION, *PINET_PORT_RESERVATION_INFORMATION;

#endif
