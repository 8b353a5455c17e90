// Package agent runs the traversal for all peers of a node.
package agent
