// An Express site with express-rate-limit, whose options are JSON in OPTIONS. Of
// functions there are some, named in USE. GET /clock?ms=N moves the clock on.
import express from 'express'
import { ipKeyGenerator, rateLimit } from 'express-rate-limit'
import { RedisStore } from 'rate-limit-redis'

let ahead = 0
const now = Date.now
Date.now = () => now() + ahead

const brokenStore = {
	increment() {
		throw new Error('the store is away')
	},
	decrement() {},
	resetKey() {},
}
const uses = {
	limitByPlan: { limit: (request) => (request.get('X-Plan') === 'pro' ? 4 : 1) },
	brokenStore: { store: brokenStore },
	brokenStorePasses: { store: brokenStore, passOnStoreError: true },
	skipHealth: { skip: (request) => request.path === '/health' },
	keyOfHeader: { keyGenerator: (request) => request.get('X-Api-Key') },
	nothing: {},
}

const app = express()
app.get('/clock', (request, response) => {
	ahead += Number(request.query.ms)
	response.send('ok')
})
app.get('/facts', (request, response) => {
	response.json({
		prefix: new RedisStore({ sendCommand: async () => 'sha' }).prefix,
		sameNetwork: ipKeyGenerator('2001:db8:0:1::1') === ipKeyGenerator('2001:db8:0:2::1'),
		otherNetwork: ipKeyGenerator('2001:db8:0:1::1') === ipKeyGenerator('2001:db8:0:101::1'),
	})
})
app.use(
	rateLimit({
		...JSON.parse(process.env.OPTIONS),
		...uses[process.env.USE],
		validate: false,
		logger: { warn() {}, error() {} },
	}),
)
app.get('/bad', (request, response) => response.status(401).send('no'))
app.get('/numbers', (request, response) => response.json(request.rateLimit))
app.use((request, response) => response.send('hello'))
app.use((error, request, response, next) => response.status(500).send('broken'))
app.listen(Number(process.env.PORT), '127.0.0.1')
