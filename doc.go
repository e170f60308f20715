// Package dsas holds the words of the project: what exists (nodes, roles,
// sites, images, leases, events) and what may be said of it, with no I/O and
// nothing but the standard library. Everything else is an adapter around it.
package dsas
