// Package load simulates many booting nodes at once: what loads a server in the
// benchmarks, the boot storm and the tests. It judges no time by itself; who
// uses it does.
package load
