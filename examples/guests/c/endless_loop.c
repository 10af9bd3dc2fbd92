/* An endless loop, to see the clock end it: `deadline_exceeded`, interrupted, with a backtrace.
 *
 * Convention: a typed call, `spin() -> ()`; no bytes go in or come out, so there is no `alloc`.
 * `_start` is the same loop as a WASI command. WASI is only imported by those who use it. */

__attribute__((noinline, export_name("spin"))) void spin(void) {
    for (;;) {
    }
}

__attribute__((export_name("_start"))) void _start(void) {
    spin();
}
