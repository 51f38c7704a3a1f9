/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Persistent port reservations. StartPort is in network byte order; the error is the return value. */
#ifndef PORTKEEP_IPHLPAPI_H
#define PORTKEEP_IPHLPAPI_H

#include "windows.h"

PORTKEEP_BEGIN
ULONG CreatePersistentTcpPortReservation(USHORT StartPort, USHORT NumberOfPorts, PULONG64 Token);
ULONG CreatePersistentUdpPortReservation(USHORT StartPort, USHORT NumberOfPorts, PULONG64 Token);
ULONG DeletePersistentTcpPortReservation(USHORT StartPort, USHORT NumberOfPorts);
ULONG DeletePersistentUdpPortReservation(USHORT StartPort, USHORT NumberOfPorts);
ULONG LookupPersistentTcpPortReservation(USHORT StartPort, USHORT NumberOfPorts, PULONG64 Token);
ULONG LookupPersistentUdpPortReservation(USHORT StartPort, USHORT NumberOfPorts, PULONG64 Token);
PORTKEEP_END

#if defined(__cplusplus) && UINTPTR_MAX > 0xffffffffu
/* Windows has one 64-bit type, the system has two: a token may be either in C++. */
inline ULONG CreatePersistentTcpPortReservation(USHORT start, USHORT count, uint64_t *token)
{
	ULONG64 given = 0;
	ULONG error = CreatePersistentTcpPortReservation(start, count, token ? &given : (PULONG64)NULL);
	if (!error)
		*token = given;
	return error;
}

inline ULONG CreatePersistentUdpPortReservation(USHORT start, USHORT count, uint64_t *token)
{
	ULONG64 given = 0;
	ULONG error = CreatePersistentUdpPortReservation(start, count, token ? &given : (PULONG64)NULL);
	if (!error)
		*token = given;
	return error;
}

inline ULONG LookupPersistentTcpPortReservation(USHORT start, USHORT count, uint64_t *token)
{
	ULONG64 given = 0;
	ULONG error = LookupPersistentTcpPortReservation(start, count, token ? &given : (PULONG64)NULL);
	if (!error)
		*token = given;
	return error;
}

inline ULONG LookupPersistentUdpPortReservation(USHORT start, USHORT count, uint64_t *token)
{
	ULONG64 given = 0;
	ULONG error = LookupPersistentUdpPortReservation(start, count, token ? &given : (PULONG64)NULL);
	if (!error)
		*token = given;
	return error;
}
#endif

#endif
