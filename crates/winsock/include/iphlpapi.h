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

#endif
