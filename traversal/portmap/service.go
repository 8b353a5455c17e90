package portmap

import "context"

// service is one protocol of one gateway. It is used by one goroutine at a time.
type service interface {
	// add makes or renews the mapping of a lease. The grant is plausible.
	add(ctx context.Context, l *lease) (grant, error)
	// remove deletes the mapping of a lease.
	remove(ctx context.Context, l *lease) error
}
