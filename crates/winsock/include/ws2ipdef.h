/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* IP addresses and options: the system's, under the names Windows has for them as well. */
#ifndef PORTKEEP_WS2IPDEF_H
#define PORTKEEP_WS2IPDEF_H

#include "ws2def.h"

typedef struct sockaddr_in6 SOCKADDR_IN6, *PSOCKADDR_IN6, *LPSOCKADDR_IN6;
typedef struct in6_addr IN6_ADDR, *PIN6_ADDR;
typedef union _SOCKADDR_INET {
	struct sockaddr_in Ipv4;
	struct sockaddr_in6 Ipv6;
	sa_family_t si_family;
} SOCKADDR_INET, *PSOCKADDR_INET;

#endif
