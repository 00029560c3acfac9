// Package store keeps hyperd's records on disk: one bbolt file that is the
// truth about what exists, and the layout of every path.
//
// It knows records as values, never what they mean. A record that describes
// something on the host is put before that thing is made.
package store
