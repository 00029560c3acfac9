package guest

import spb "google.golang.org/genproto/googleapis/rpc/status"

// CodeError is the error that a part of Run failed with, checked and bounded
// as those of single calls; nil for code 0.
func CodeError(code uint32, message string) error {
	return statusError(&spb.Status{Code: int32(code), Message: message})
}
