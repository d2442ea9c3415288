package store

import (
	"errors"
	"time"
)

// Bounds on what operators set by hand.
const (
	// MaxNotices is how many notices a board holds at most, of each class.
	MaxNotices = 1000
	// MaxNoticeBytes bounds the name and the text of a notice together.
	MaxNoticeBytes = 1024
)

// Steered is a store whose counts operators change by hand, and that carries short
// notices to all processes that use it. All methods are safe for concurrent use.
// Those that wait return at the latest after wait, with an *[Error] if the store has
// not answered by then. They say what is to be, not what is to change, so whatever
// is known of a call that failed, it can be made again.
//
// None of them enumerates keys: a key is changed by its exact name.
type Steered interface {
	Store
	// Amend changes what is kept of a key.
	Amend(wait time.Duration, key Key, amendment Amendment) error
	// Post puts a notice on the board, in the place of one of the same class and name.
	// It fails with [ErrBoardFull] if there are most others of the class.
	Post(wait time.Duration, notice Notice, most int) error
	// Withdraw takes a notice off the board, and reports whether it was there.
	Withdraw(wait time.Duration, class byte, name string) (found bool, err error)
	// WatchBoard calls do with all that is on the board, and then each time that it
	// has changed, until stop is called; perhaps still once while stop is running. It
	// must not block, and must not change the notices. Other processes hear of a
	// change about a second later. While the store is away, what was on the board is
	// believed to be there until it ends.
	WatchBoard(do func([]Notice)) (stop func())
}

// Amendment is what is to be of a key. What is zero stays as it is.
type Amendment struct {
	// Empty forgets the units that count, and with them a ban that was not set by
	// hand. Charges made before can no longer be refunded.
	Empty bool
	// Unban ends any ban.
	Unban bool
	// Ban refuses the key for so long from now on, in the place of any other ban: up
	// to [MaxWindow], in whole microseconds. Refunds do not end it. It does nothing to
	// the units that count.
	Ban time.Duration
}

// Notice is a line that all processes which use a store are told.
type Notice struct {
	// Class and Name tell it from others: the class is a letter, the name any bytes.
	Class byte
	Name  string
	// Text is what it says, for whoever posts and reads notices of the class.
	Text string
	// Lasts is how long it is yet to be on the board: when it is posted, 1 s to
	// [MaxWindow] in whole microseconds; when it is read, as of then.
	Lasts time.Duration
}

// ErrBoardFull is the error of a board that holds too many notices of a class.
var ErrBoardFull = errors.New("store: the board is full")
