// Package serve is what the drivers in Go share: questions in, answers out; see ../../../matrix/driver.py.
package serve

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// Question has the fields of all questions.
type Question struct {
	Op, Bucket, Key, File, To, Prefix, Etag, Upload string
	Offset, Length, Page, Seconds                   int64
	PartBytes                                       int64 `json:"part_bytes"`
	Keys                                            []string
}

// Told is what a client tells about what it did.
type Told map[string]any

// ErrSource is what a source that is to be given up ends with.
var ErrSource = errors.New("the source failed")

// Pipe is a source of unknown length that cannot be read twice. It fails after so many bytes, unless they are 0.
type Pipe struct {
	file *os.File
	left int64
	ends bool
}

// Open opens a pipe.
func Open(path string, failAfter int64) (*Pipe, error) {
	file, err := os.Open(path)
	return &Pipe{file, failAfter, failAfter > 0}, err
}

func (p *Pipe) Read(into []byte) (int, error) {
	if p.ends && p.left <= 0 {
		return 0, ErrSource
	}
	if len(into) > 64*1024 {
		into = into[:64*1024]
	}
	read, err := p.file.Read(into)
	p.left -= int64(read)
	return read, err
}

// Save writes a body to a file.
func Save(to string, body io.ReadCloser) error {
	defer body.Close()
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(file, body); err != nil {
		return err
	}
	return file.Close()
}

// Run answers questions until there are no more. kind says of an error: "missing", "precondition" or "".
func Run(operations map[string]func(Question) (Told, error), notOffered map[string]string, kind func(error) string) {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var question Question
		if err := json.Unmarshal(lines.Bytes(), &question); err != nil {
			panic(err)
		}
		answer, err := json.Marshal(reply(question, operations, notOffered, kind))
		if err != nil {
			panic(err)
		}
		fmt.Printf("=> %s\n", answer)
	}
}

func reply(question Question, operations map[string]func(Question) (Told, error), notOffered map[string]string,
	kind func(error) string) map[string]any {
	if reason, ok := notOffered[question.Op]; ok {
		return map[string]any{"not offered": reason}
	}
	told, err := operations[question.Op](question)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		word := kind(err)
		if word == "" {
			word = "other"
		}
		return map[string]any{"error": word, "message": err.Error()}
	}
	if told == nil {
		told = Told{}
	}
	return map[string]any{"ok": told}
}
