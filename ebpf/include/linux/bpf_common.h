/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC includes this file; hvprobe's programs need no instruction encodings. */
