package modindex

// Fnmatch matches s against a shell pattern as fnmatch(3) does without flags
// ('*' and '?' match any character, '/' and a leading '.' too; [a-z], [!a-z];
// a backslash takes the next character as it is), with '-' and '_' equal
// outside brackets, which is how modprobe compares aliases (libkmod,
// alias_normalize). A bracket that never closes is an ordinary character.
func Fnmatch(pattern, s string) bool {
	p, i := 0, 0
	// Where to go on when a later character does not fit: one more character
	// for the latest '*'. Earlier stars need no retry.
	star, mark := -1, 0
	for i < len(s) {
		if p < len(pattern) {
			switch pattern[p] {
			case '*':
				star, mark = p, i
				p++
				continue
			case '?':
				p++
				i++
				continue
			}
			if next, ok := matchOne(pattern, p, s[i]); ok {
				p = next
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne compares the pattern element at p (no '*', no '?') with c and gives
// the place after the element.
func matchOne(pattern string, p int, c byte) (next int, ok bool) {
	switch pattern[p] {
	case '[':
		if next, ok, closed := matchBracket(pattern, p, c); closed {
			return next, ok
		}
	case '\\':
		if p+1 < len(pattern) {
			return p + 2, same(pattern[p+1], c)
		}
	}
	return p + 1, same(pattern[p], c)
}

func matchBracket(pattern string, p int, c byte) (next int, ok, closed bool) {
	i := p + 1
	not := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if not {
		i++
	}
	for first := true; i < len(pattern); first = false {
		lo := pattern[i]
		if lo == ']' && !first {
			return i + 1, ok != not, true
		}
		if lo == '\\' && i+1 < len(pattern) {
			i++
			lo = pattern[i]
		}
		i++
		hi := lo
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			hi = pattern[i+1]
			i += 2
		}
		if lo <= c && c <= hi {
			ok = true
		}
	}
	return 0, false, false
}

func same(a, b byte) bool {
	return a == b || (a == '-' || a == '_') && (b == '-' || b == '_')
}
