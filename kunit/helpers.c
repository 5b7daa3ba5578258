// SPDX-License-Identifier: GPL-2.0
/* An object belongs to one module only: the test module gets its own copy. */
#include "../rust/kext/helpers/helpers.c"
