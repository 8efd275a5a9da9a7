/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC brings its own log2; the file only has to exist. */
