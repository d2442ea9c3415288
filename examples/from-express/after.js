// The service behind Caddy, which limits. What is left of the client's limit comes in a
// header that Caddy sets on every request.
import express from 'express'

const app = express()
app.set('trust proxy', 1)

app.get('/health', (request, response) => response.send('ok'))

app.use((request, response, next) => {
	request.rateLimit = { remaining: Number(request.get('X-Limit-Remaining')) }
	next()
})

app.get('/', (request, response) => {
	response.json({ remaining: request.rateLimit.remaining })
})

app.listen(Number(process.env.PORT ?? 3001), '127.0.0.1')
