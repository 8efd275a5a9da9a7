/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Packet sockets: BCC asks for the file, hvprobe's programs use none. */
