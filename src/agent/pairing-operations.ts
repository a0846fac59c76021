import * as v from 'valibot'
import type { OperationTable } from '../control/operations.js'
import type { Agent } from './agent.js'
import { readArguments, text } from './arguments.js'

const relation = v.picklist(['own', 'peer'], 'must be own or peer')
const share = v.exactOptional(v.array(text))

/** Pairing by a code or a link. */
export function pairingOperations (agent: Agent): Pick<OperationTable, 'pair-open' | 'pair-join' | 'pair-answer'> {
  return {
    'pair-open': async (args, emit, signal) => await agent.pairing.openWindow(readArguments(v.strictObject({
      as: v.exactOptional(relation), yes: v.exactOptional(v.boolean()), share, linkOnly: v.exactOptional(v.boolean()),
    }), args), emit, signal),

    'pair-join': async (args, emit, signal) => await agent.pairing.join(readArguments(v.strictObject({
      invitation: text, as: relation, yes: v.exactOptional(v.boolean()), share, at: v.exactOptional(v.array(text)), replaceUser: v.exactOptional(v.boolean()),
    }), args), emit, signal),

    'pair-answer': async args => {
      const { request, relation: answer } = readArguments(v.strictObject({ request: text, relation: v.nullable(relation) }), args)
      agent.pairing.answer(request, answer)
      return {}
    },
  }
}
