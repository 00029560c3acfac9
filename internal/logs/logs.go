// Package logs keeps what containers print: Docker's json-file format, with
// rotation, written so that a crash of hyperd neither loses nor doubles a
// byte, and read back with tail, since, until and follow.
//
// Exactness: beside the log lies a small mapped file with the log's length
// and how far each stream was consumed. The guest is told to forget output
// only after that file says it is in the log; on reopening, what the log has
// beyond the recorded length is cut off and comes again from the guest.
package logs
