//go:build !linux

package stream

import "syscall"

const canAwaitHangup = false

func awaitHangup(syscall.RawConn) (broken, ok bool) { return false, false }
