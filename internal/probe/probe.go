// Package probe looks whether what runs in a container is well.
package probe
