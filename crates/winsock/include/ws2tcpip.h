/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Names and addresses: the system's getaddrinfo, getnameinfo, inet_pton and inet_ntop. */
#ifndef PORTKEEP_WS2TCPIP_H
#define PORTKEEP_WS2TCPIP_H

#include "winsock2.h"
#include "ws2ipdef.h"

typedef struct addrinfo ADDRINFOA, *PADDRINFOA;

#define gai_strerrorA gai_strerror
#define InetPtonA inet_pton
#define InetNtopA inet_ntop
/* There are no wide forms. */
#define InetPton InetPtonA
#define InetNtop InetNtopA

#endif
