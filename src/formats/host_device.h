// SPDX-License-Identifier: BSD-3-Clause
// What marks a function that host and device share.
#pragma once

#if defined(__CUDACC__)
#define MOE8_HD __host__ __device__
#else
#define MOE8_HD
#endif
