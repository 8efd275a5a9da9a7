/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC asks for the file to steer clear of it; the programs use none. */
