// Package keep decides what is done next to keep the containers of a pod as
// their roles and restart policies say.
package keep
