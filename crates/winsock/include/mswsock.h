/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Microsoft's extensions to Winsock do not exist here. The header exists for programs that include it all the same. */
#ifndef PORTKEEP_MSWSOCK_H
#define PORTKEEP_MSWSOCK_H

#include "winsock2.h"

#endif
