/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC includes this file to work around it; hvprobe's programs need nothing from it. */
