package replay

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// chunkBytes is how much of a log is parsed at once.
	chunkBytes = 1 << 20
	// maxLine is the longest line that is read. Caddy bounds the headers of a request at
	// 1 MB; nothing longer is a request.
	maxLine = 8 << 20
	// zstdWindow bounds the memory that a compressed file can ask for.
	zstdWindow = 128 << 20
)

// StandardInput is its name among files.
const StandardInput = "-"

// open opens a log, compressed or not. What is read of the file itself is added to read.
func open(name string, stdin io.Reader, read *atomic.Int64) (io.ReadCloser, error) {
	var file io.ReadCloser
	if name == StandardInput {
		file = io.NopCloser(stdin)
	} else {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err == nil && info.IsDir() {
			f.Close()
			return nil, fmt.Errorf("%s is a directory; name the logs in it, such as %s/*.log*", name, name)
		}
		file = f
	}
	plain := bufio.NewReaderSize(&counted{file, read}, 256<<10)
	magic, _ := plain.Peek(4)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(plain)
		if err != nil {
			file.Close()
			return nil, fmt.Errorf("%s: %v", name, err)
		}
		return unpacked{z, file}, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			file.Close()
			return nil, fmt.Errorf("%s: %v", name, err)
		}
		return unpacked{z.IOReadCloser(), file}, nil
	}
	return unpacked{io.NopCloser(plain), file}, nil
}

// unpacked is a log with the file that it is read from.
type unpacked struct {
	io.ReadCloser
	file io.Closer
}

func (u unpacked) Close() error {
	u.ReadCloser.Close()
	return u.file.Close()
}

type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

var chunks = sync.Pool{New: func() any { return new(make([]byte, 0, chunkBytes)) }}

// splitter cuts a log into chunks of whole lines.
type splitter struct {
	from io.Reader
	rest []byte // of the last chunk, behind its last line
	long int64  // lines that were longer than maxLine
	skip bool   // until the next end of a line
	err  error
}

// next returns the next chunk, nil at the end. Its last line may lack its end.
func (s *splitter) next() *[]byte {
	for s.err == nil {
		chunk := chunks.Get().(*[]byte)
		*chunk = append((*chunk)[:0], s.rest...)
		s.rest = s.rest[:0]
		s.fill(chunk)
		if s.skip {
			s.skipTo(chunk)
		}
		end := bytes.LastIndexByte(*chunk, '\n') + 1
		switch {
		case s.err != nil:
			end = len(*chunk)
		case end == 0 && len(*chunk) > maxLine:
			s.long++
			s.skip = true
		default:
			s.rest = append(s.rest[:0], (*chunk)[end:]...)
		}
		if *chunk = (*chunk)[:end]; end > 0 {
			return chunk
		}
		chunks.Put(chunk)
	}
	return nil
}

// fill reads until the chunk has as much as one holds, and more if a line is longer.
func (s *splitter) fill(chunk *[]byte) {
	b := *chunk
	if cap(b)-len(b) < chunkBytes/2 {
		b = append(make([]byte, 0, 2*cap(b)), b...)
	}
	for s.err == nil && len(b) < cap(b) {
		var n int
		n, s.err = s.from.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
	}
	*chunk = b
}

// skipTo drops what is left of a line that was too long.
func (s *splitter) skipTo(chunk *[]byte) {
	end := bytes.IndexByte(*chunk, '\n') + 1
	if end == 0 {
		*chunk = (*chunk)[:0]
		return
	}
	s.skip = false
	*chunk = append((*chunk)[:0], (*chunk)[end:]...)
}

// failed is why the log ended, if that was before its end.
func (s *splitter) failed() error {
	if s.err == io.EOF {
		return nil
	}
	return s.err
}
