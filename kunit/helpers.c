// SPDX-License-Identifier: GPL-2.0
/* An object belongs to one module only: the test module gets copies. */
#include "../drivers/rvhost/params.c"
#include "../rust/kext/helpers/helpers.c"
