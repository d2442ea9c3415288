package body

import (
	"bytes"
	"io"
	"math/big"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// jsonValue finds a place in a JSON document. The tokenizer rejects what is not
// UTF-8, half surrogates, a byte order mark and nesting without end. It is not
// asked to reject repeated names: it would have to remember all of them, in many
// times the memory of the document. Only names on the path count.
func jsonValue(data []byte, path []string) (string, Outcome) {
	d := jsontext.NewDecoder(bytes.NewBuffer(data), jsontext.AllowDuplicateNames(true))
	value, outcome, err := jsonWalk(d, path)
	if err != nil {
		return "", Unreadable
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return "", Unreadable // something follows the document
	}
	return value, outcome
}

// jsonWalk reads one value of the document, and finds the place in it.
func jsonWalk(d *jsontext.Decoder, path []string) (string, Outcome, error) {
	switch k := d.PeekKind(); {
	case len(path) == 0 && k != '{' && k != '[':
		token, err := d.ReadToken()
		if err != nil {
			return "", 0, err
		}
		value, outcome := jsonScalar(token)
		return value, outcome, nil
	case len(path) > 0 && k == '{':
		return jsonObject(d, path)
	case len(path) > 0 && k == '[':
		return jsonArray(d, path)
	case len(path) == 0:
		// Some applications make a text of a list that has one.
		return "", Ambiguous, d.SkipValue()
	default:
		return "", Missing, d.SkipValue()
	}
}

func jsonObject(d *jsontext.Decoder, path []string) (value string, outcome Outcome, err error) {
	outcome = Missing
	if _, err = d.ReadToken(); err != nil {
		return "", 0, err
	}
	times, similar := 0, false
	for d.PeekKind() != '}' {
		token, err := d.ReadToken()
		if err != nil {
			return "", 0, err
		}
		name := token.String()
		if name == path[0] && times == 0 {
			times++
			value, outcome, err = jsonWalk(d, path[1:])
		} else {
			if name == path[0] {
				times++
			}
			// Go and .NET take names in another case for the same.
			similar = similar || strings.EqualFold(name, path[0])
			err = d.SkipValue()
		}
		if err != nil {
			return "", 0, err
		}
	}
	if times > 1 || similar {
		value, outcome = "", Ambiguous
	}
	_, err = d.ReadToken()
	return value, outcome, err
}

func jsonArray(d *jsontext.Decoder, path []string) (value string, outcome Outcome, err error) {
	outcome = Missing
	if _, err = d.ReadToken(); err != nil {
		return "", 0, err
	}
	for i := 0; d.PeekKind() != ']'; i++ {
		if strconv.Itoa(i) == path[0] {
			value, outcome, err = jsonWalk(d, path[1:])
		} else {
			err = d.SkipValue()
		}
		if err != nil {
			return "", 0, err
		}
	}
	_, err = d.ReadToken()
	return value, outcome, err
}

func jsonScalar(token jsontext.Token) (string, Outcome) {
	switch token.Kind() {
	case '"':
		return token.String(), Found
	case '0':
		return jsonNumber(token.String())
	case 'n':
		return "", Missing
	}
	return "", Ambiguous // true and false tell nobody apart
}

const (
	// maxNumber is the length of the longest number that is read. Precision is
	// enough to tell any such number from the nearest integer.
	maxNumber = 64
	precision = 256 // bits
	// maxInteger is the largest integer that all applications can tell from the
	// next one.
	maxInteger = 1<<53 - 1
)

// jsonNumber writes a number in the one spelling that is a key: 1, 1.0 and 1e0
// are one number. Fractions are rounded, cut or kept by applications, and large
// integers rounded by some.
func jsonNumber(literal string) (string, Outcome) {
	if len(literal) > maxNumber {
		return "", Ambiguous
	}
	number, _, err := big.ParseFloat(literal, 10, precision, big.ToNearestEven)
	if err != nil || !number.IsInt() {
		return "", Ambiguous
	}
	n, exact := number.Int64()
	if exact != big.Exact || n < -maxInteger || n > maxInteger {
		return "", Ambiguous
	}
	return strconv.FormatInt(n, 10), Found
}
